"""The command line: every command loads its configuration, then its stage.

Exit 0 done, 1 the data or the configuration is wrong (one line), 2 usage, 130 interrupted, 143 ended by SIGTERM,
138 by SIGUSR1, 129 by SIGHUP.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flcache.errors import FlcacheError

from .setup.signals import EndedBy, end_on_signals

if TYPE_CHECKING:
    from flcache.config import ResolvedConfig

_CONFIG = click.option("--config", "-c", required=True, metavar="C", help="A YAML file, or the name of a shipped one.")
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", callback=lambda *given: _pairs(given[2]))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
_CHECKPOINT = click.option(
    "--checkpoint",
    metavar="P",
    callback=lambda *given: Path(given[2]) if given[2] else None,
    help="A checkpoint folder, or best; the last one in training.dir by default.",
)


def _configured(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of a configuration, and as its first argument the configuration that they name.

    Every key that the files disagree about is a notice on stderr.
    """

    @wraps(command)
    def run(config: str, overrides: tuple[str, ...], **options: Any) -> None:
        from flcache.config import load_resolved

        resolved = load_resolved(config, overrides)
        for conflict in resolved.conflicts:
            click.echo(f"Notice: {conflict}", err=True)
        command(resolved, **options)

    return _CONFIG(_OVERRIDES(run))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="flcache", message="flcache %(version)s")
def cli() -> None:
    """Encode your videos once, train world models on the latents."""


@cli.command()
@click.option("--out", default="flcache-demo", show_default=True, metavar="DIR", help="Folder for everything it makes.")
def demo(out: str) -> None:
    """Synthetic videos, encoded, trained on and evaluated, in minutes on 2 cores.

    Downloads nothing. Prints the commands that it runs; each of them works when pasted. A second run
    redoes nothing that is done.
    """
    from . import demo as stage

    stage.run(Path(out), lambda arguments: cli.main(arguments, prog_name="flcache", standalone_mode=False))


@cli.command()
@_configured
@click.option(
    "--shards", metavar="I/N", callback=lambda *given: _share(given[2]), help="Encode part I of N, counted from 0."
)
@click.option("--retry-failed", is_flag=True, help="Also try clips again that failed, such as for a missing video.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Where shards are encoded.")
@click.option("--address", metavar="ADDRESS", help="Of the Ray cluster; without it Ray looks for one.")
def encode(
    resolved: ResolvedConfig,
    shards: tuple[int, int] | None,
    retry_failed: bool,
    engine: Literal["local", "ray"],
    address: str | None,
) -> None:
    """Encode the videos of a dataset into a cache of latents.

    Safe to kill and to run again: shards that are committed are skipped.
    """
    from . import encode as stage
    from .setup.engine import Engine

    if address and engine != "ray":
        raise click.UsageError("--address is that of a Ray cluster; give --engine ray too")
    stage.run(resolved.config, shards=shards, retry_failed=retry_failed, engine=Engine(engine, address))


@cli.command()
@_configured
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in training.dir.")
def train(resolved: ResolvedConfig, resume: bool) -> None:
    """Train a predictor of future latents, from a cache or from videos.

    On SIGTERM or SIGUSR1 it finishes its step, writes a checkpoint and exits with 143 or 138.
    """
    from . import train as stage

    stage.run(resolved.config, resume=resume)


@cli.command()
@_configured
@_CHECKPOINT
@_JSON
def evaluate(resolved: ResolvedConfig, checkpoint: Path | None, as_json: bool) -> None:
    """Roll the predictor out and compare it with baselines, horizon by horizon."""
    from . import evaluate as stage

    stage.run(resolved.config, checkpoint=checkpoint, as_json=as_json)


@cli.command()
@_configured
@_JSON
def baselines(resolved: ResolvedConfig, as_json: bool) -> None:
    """Score every baseline that needs no training, horizon by horizon.

    Copying, the mean of the context, linear extrapolation, the dataset's mean and ridge autoregression.
    """
    from . import baselines as stage

    stage.run(resolved.config, as_json=as_json)


@cli.command()
@click.argument("directory", metavar="DIR")
@_configured
@click.option(
    "--clips", default=8, show_default=True, metavar="N", type=click.IntRange(min=1), help="How many to check."
)
@_JSON
def audit(resolved: ResolvedConfig, directory: str, clips: int, as_json: bool) -> None:
    """Prove that a cache holds what its encoder gives, and that contexts have not seen the future.

    Encodes some clips again, then changes every frame after a boundary and looks whether a context moves.
    """
    from . import audit as stage

    stage.run(directory, resolved.config, clips=clips, as_json=as_json)


@cli.command()
@_configured
@_CHECKPOINT
@_JSON
def probe(resolved: ResolvedConfig, checkpoint: Path | None, as_json: bool) -> None:
    """Train classifiers of the labels on true latents, and test them on true, predicted and copied ones.

    Shows how much of what matters a prediction has kept.
    """
    from . import probe as stage

    stage.run(resolved.config, checkpoint=checkpoint, as_json=as_json)


@cli.command()
@_configured
@click.option("--measure", is_flag=True, help="Also hours: encodes and trains on a few videos first.")
def inspect_config(resolved: ResolvedConfig, measure: bool) -> None:
    """Show a configuration: where each value came from, sizes, and what is wrong.

    Needs no network and no weights, except with --measure.
    """
    from . import inspect_config as stage

    stage.run(resolved, measure=measure)


@cli.command()
@click.argument("directory", metavar="DIR")
@_JSON
def inspect_cache(directory: str, as_json: bool) -> None:
    """Show what is in a cache, how much of it is done, and what failed and why."""
    from . import inspect_cache as stage

    stage.run(directory, as_json=as_json)


@cli.command()
@click.argument("directory", metavar="DIR")
@_JSON
def verify(directory: str, as_json: bool) -> None:
    """Read every byte of a cache and say what is not as it was written."""
    from . import verify as stage

    stage.run(directory, as_json=as_json)


@cli.command()
@click.argument("directory", metavar="DIR")
@_configured
def repair(resolved: ResolvedConfig, directory: str) -> None:
    """Encode damaged and missing shards anew, and prove them equal to what was committed.

    Safe to kill and to run again.
    """
    from . import repair as stage

    stage.run(directory, resolved.config)


@cli.command("import")
@click.argument("manifest", metavar="MANIFEST")
@click.option("--root", required=True, metavar="DIR", help="Folder that the paths in MANIFEST are relative to.")
@click.option("--out", required=True, metavar="DIR", help="Where the cache goes.")
@click.option("--codec", metavar="NAME", help="As cache.codec of a configuration.")
@click.option(
    "--shape", metavar="T,H,W,D", callback=lambda *given: _sizes(given[2]), help="Reshape every file to this."
)
@click.option("--context", type=click.Choice(["step", "full"]), help="As encoded.")
@click.option("--step-s", type=float, metavar="S", help="Seconds from one step to the next; 1 if not given.")
@click.option("--key", metavar="NAME", help="The tensor to take from files that hold several.")
@click.option("--spec", metavar="FILE", help="JSON that says what the latents are.")
def import_latents(manifest: str, root: str, out: str, spec: str | None, **options: Any) -> None:
    """Make a cache of latents in .npy, .pt or .safetensors files, listed in a CSV file.

    MANIFEST has a column path and, if wanted, id, label, split and video; others are kept as metadata. --context=step
    says that every step was encoded alone; otherwise each counts as having seen the whole clip.
    """
    from . import import_latents as stage

    given = {name: value for name, value in options.items() if value is not None}
    chosen = stage.ImportOptions(spec=Path(spec) if spec else None, **given)
    stage.run(Path(manifest), Path(root), Path(out), chosen)


@cli.command()
@click.argument("directory", metavar="DIR")
@click.option("--out", metavar="FILE", help="Where to write the page; DIR/report.html by default.")
@_CHECKPOINT
@_OVERRIDES
def report(directory: str, out: str | None, checkpoint: Path | None, overrides: tuple[str, ...]) -> None:
    """Write a trained run as one HTML page: skill, losses, pictures of predictions, what failed.

    DIR is a training.dir, or the folder that holds it as "training". The page holds everything it shows.
    """
    from . import report as stage

    stage.run(Path(directory), overrides, out=Path(out) if out else None, checkpoint=checkpoint)


@cli.command()
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.argument("directory", metavar="DIR")
@_OVERRIDES
def export(checkpoint: str, directory: str, overrides: tuple[str, ...]) -> None:
    """Write a trained predictor and its encoder as folders that can be taken away.

    CHECKPOINT is a checkpoint, or a training.dir, whose newest is taken. DIR/predictor is what
    flcache.predictor.load_predictor opens; DIR/encoder is a Hugging Face folder, for encoder.name.
    """
    from . import export as stage

    stage.run(Path(checkpoint), Path(directory), overrides)


@cli.command()
@click.argument("videos", metavar="VIDEO...", nargs=-1, required=True)
@click.option("--model", required=True, metavar="DIR", help="A folder that flcache export has written.")
@click.option("--out", default="predictions", show_default=True, metavar="DIR", help="Where the results go.")
@click.option(
    "--every",
    default=1,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=1),
    help="Steps from one context to the next: how far ahead each step is predicted at most.",
)
@click.option("--device", default="auto", show_default=True, metavar="D", help="auto, cpu, mps, cuda or cuda:1.")
def predict(videos: tuple[str, ...], model: str, out: str, every: int, device: str) -> None:
    """Predict the latents of videos, window after window, with an exported model.

    Writes latents and predictions as .npz, and one HTML page: how surprising every step was, beside
    copying the last, and a player.
    """
    from . import predict as stage

    stage.run([Path(video) for video in videos], Path(model), Path(out), every=every, device=device)


@cli.command()
@click.argument("directory", metavar="DIR")
@click.argument("url", metavar="URL")
@click.option("--license", "licence", default="unknown", show_default=True, help="For its README.")
@click.option("--no-read-back", is_flag=True, help="Trust the store with what it was sent.")
def push(directory: str, url: str, licence: str, no_read_back: bool) -> None:
    """Send a cache or an exported model to a bucket: s3://, gs://, hf://, or any URL that fsspec knows.

    Run again, it sends what is missing there. Every file is read back and compared.
    """
    from . import transfer as stage

    stage.push(Path(directory), url, licence=licence, read_back=not no_read_back)


@cli.command()
@click.argument("url", metavar="URL")
@click.argument("directory", metavar="DIR")
def pull(url: str, directory: str) -> None:
    """Fetch what flcache push has sent. Every file is checked before it gets its name.

    Run again, it fetches what is missing or damaged.
    """
    from . import transfer as stage

    stage.pull(url, Path(directory))


@cli.command()
@click.option("--config", metavar="NAME_OR_FILE", help="What is it to do? Exit 1 where it needs what does not work.")
@_OVERRIDES
@_JSON
def doctor(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Try what encoding and training stand on: decoders, torch, GPU, disk, bucket, hub.

    A line for each, with what would mend it.
    """
    from flcache.config import load_config

    from . import doctor as stage

    stage.run(load_config(config, overrides), is_given=bool(config or overrides), as_json=as_json)


@cli.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--rivals", metavar="PYTHON", help="An interpreter that has the other loaders, if this one has not.")
@_JSON
def loader(directory: str | None, rivals: str | None, as_json: bool) -> None:
    """Clips per second: the loader, a bare ring of preadv, and other loaders that are installed.

    Reads the training split of the cache in DIR; without it, one of noise that is made here and removed.
    """
    from . import bench as stage

    stage.run(Path(directory) if directory else None, as_json=as_json, rivals=rivals)


@bench.command("encode")
@click.option("--config", metavar="NAME_OR_FILE", help="As of flcache encode; without it videos are made here.")
@_OVERRIDES
@click.option(
    "--stand-in",
    type=click.FloatRange(min=0),
    metavar="R",
    help="Instead of the encoder one that only waits, for R clips a second; 0 costs nothing.",
)
@click.option(
    "--clips", type=click.IntRange(min=2), default=160, show_default=True, help="How many; a GPU wants a thousand."
)
@_JSON
def bench_encode(
    config: str | None, overrides: tuple[str, ...], stand_in: float | None, clips: int, as_json: bool
) -> None:
    """Seconds a clip of each stage of encoding, the limit that follows, and clips per second reached.

    Without --config an encoder is stated by KEY=VALUE, or --stand-in takes its place.
    """
    from flcache.config import load_config

    from .bench import encode as stage

    stage.run(
        load_config(config, overrides), own_videos=config is None, stand_in=stand_in, as_json=as_json, clips=clips
    )


@bench.command("train")
@click.option("--config", metavar="NAME_OR_FILE", help="As of flcache train; without it videos are made here.")
@_OVERRIDES
@click.option("--steps", type=click.IntRange(min=3), default=20, show_default=True, help="Steps from each source.")
@_JSON
def bench_train(config: str | None, overrides: tuple[str, ...], steps: int, as_json: bool) -> None:
    """Steps and clips per second of training from a cache, and from videos with the encoder frozen and trained.

    One predictor and the first 64 training videos for all three. Without --config an encoder is stated by KEY=VALUE.
    """
    from flcache.config import load_config

    from .bench import train as stage

    stage.run(load_config(config, overrides), own_videos=config is None, steps=steps, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command, and turns what went wrong into one line and an exit code."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # those of libraries; `python -W default -m ...` shows them
    ended = end_on_signals()
    try:
        code = _exit_code(arguments)
    except EndedBy as signalled:
        signalled.leave()
    finally:  # also after an error while unwinding, such as a closed terminal
        if ended:
            ended[0].leave()
    sys.exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        code: Any = cli.main(arguments, prog_name="flcache", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted", 130)
    except FlcacheError as error:
        return _say(str(error), 1)
    except BrokenPipeError:
        # The reader, such as `head`, has exited: no error, but nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        return _say(f"{where}{error.strerror}", 1)


def _say(text: str, code: int) -> int:
    for line in text.splitlines():
        click.echo(f"Error: {line}", err=True)
    return code


def _pairs(overrides: tuple[str, ...]) -> tuple[str, ...]:
    for override in overrides:
        if "=" not in override:
            raise click.BadParameter(f'"{override}" is not KEY=VALUE, such as training.steps=300')
    return overrides


def _sizes(text: str | None) -> tuple[int, ...] | None:
    """`8,16,16,1024` as four numbers."""
    if text is None:
        return None
    sizes = text.split(",")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f'"{text}" is not T,H,W,D, such as 8,16,16,1024')
    return tuple(map(int, sizes))


def _share(text: str | None) -> tuple[int, int] | None:
    """`0/4` as (0, 4)."""
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise click.BadParameter(f'"{text}" is not I/N with I from 0 to N - 1, such as 0/4')
    return int(part), int(parts)


if __name__ == "__main__":
    main()
