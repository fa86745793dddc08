# A Slurm of one node on localhost, without systemd. Source it; slurm_start makes sbatch and squeue work, slurm_stop ends it.
# Needs root and Debian's packages slurm-wlm and munge.

slurm_start() {
  slurm_dir=$(mktemp -d)
  export SLURM_CONF=$slurm_dir/slurm.conf
  local host cores memory
  host=$(hostname -s)
  cores=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p "$slurm_dir"/{state,spool} /run/munge
  chown munge /run/munge
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$slurm_dir/state
SlurmdSpoolDir=$slurm_dir/spool
SlurmctldLogFile=$slurm_dir/slurmctld.log
SlurmdLogFile=$slurm_dir/slurmd.log
SlurmctldPidFile=$slurm_dir/slurmctld.pid
SlurmdPidFile=$slurm_dir/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  su -s /bin/sh munge -c munged
  slurmctld -i
  slurmd
  for _ in $(seq 30); do
    sinfo --noheader --format %t 2>/dev/null | grep -q idle && return
    sleep 1
  done
  echo "Slurm did not come up:" >&2
  tail -n 20 "$slurm_dir"/*.log >&2
  return 1
}

slurm_stop() {
  local file pid
  for file in "$slurm_dir/slurmd.pid" "$slurm_dir/slurmctld.pid" /run/munge/munged.pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done  # it still writes its state
  done
  rm -rf "$slurm_dir"
}
