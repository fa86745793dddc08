"""Train every encoder family, trainable and frozen, 2 steps, in as many processes as `main` is called in.

`test_families_in_two_processes.py` does so in one process and in two; the first writes losses.json. The clock of a
run ticks once each time it is read, so that clips a second do not depend on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator

from flcache.batch import ChannelStatistics, VideoBatch
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel, load_encoder
from flcache.predictor import PredictorOptions, build_predictor
from flcache.training import (
    Objective,
    Run,
    RunRecord,
    TrainingOptions,
    WorldModel,
    build_optimiser,
    learning_rate_schedule,
    loop,
)

CLIPS, FRAMES, SIZE = 4, 4, 16
STEPS = 2
SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
IMAGE = {**SMALL, "image_size": SIZE}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vjepa2": {
        **SMALL,
        "crop_size": SIZE,
        "frames_per_clip": FRAMES,
        "pred_hidden_size": 12,
        "pred_num_attention_heads": 1,
        "pred_num_hidden_layers": 1,
    },
    "videomae": {**IMAGE, "num_frames": FRAMES},
    "vivit": {**IMAGE, "tubelet_size": [2, 8, 8], "num_frames": FRAMES},
    "timesformer": {**IMAGE, "num_frames": FRAMES},
    "dinov2": IMAGE,
    "dinov2_with_registers": {**IMAGE, "num_register_tokens": 2},
    "dinov3_vit": {**IMAGE, "num_register_tokens": 2},
    "vit": IMAGE,
    "ijepa": IMAGE,
    "siglip_vision_model": IMAGE,
    "clip_vision_model": IMAGE,
    "deit": IMAGE,
}
LEADING_TOKENS = {"deit": 2}
"""Of encoders that have no entry in `families.py`."""


class Clips:
    """The same `CLIPS` random clips in every step, shared among processes."""

    def __init__(self, steps: int, process: int, processes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        frames = torch.randint(0, 256, (CLIPS, FRAMES, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
        mine = slice(process * CLIPS // processes, (process + 1) * CLIPS // processes)
        self._frames, self._steps = tuple(frames[mine]), steps

    def __iter__(self) -> Iterator[VideoBatch]:
        clips = len(self._frames)
        times, valid = torch.arange(self._steps).float().expand(clips, -1), torch.ones(clips, self._steps) > 0
        yield VideoBatch(self._frames, times, valid, ("clip",) * clips, 1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train(accelerator: Accelerator, encoder: LatentVideoModel, folder: Path) -> list[float]:
    """Losses of the steps, and the clips a second of the last one."""
    torch.manual_seed(0)
    shape = encoder.latent_shape(FRAMES)
    sizes = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 24, "merge": 1}
    predictor = build_predictor(PredictorOptions("parallel", "tiny", sizes), shape)
    statistics = ChannelStatistics(torch.zeros(shape[-1]), torch.ones(shape[-1]))
    model = WorldModel(predictor, statistics, boundaries=[1], objective=Objective(), encoder=encoder)
    options = TrainingOptions(steps=STEPS, warmup_steps=0, learning_rate=1e-2, log_every=1, checkpoint_every=STEPS)
    optimiser = build_optimiser({"model": model}, options)
    source = Clips(shape[0], accelerator.process_index, accelerator.num_processes)
    schedule, record = learning_rate_schedule(optimiser, options), RunRecord(0, "", shape, False)
    run = Run(accelerator, model, source, optimiser, schedule, directory=folder, record=record, config="")
    logged: list[dict[str, float]] = []
    run.fit(options, lambda step, metrics: logged.append(metrics))
    assert encoder.encoder.training is encoder.trainable
    assert model.target_encoder is None or not model.target_encoder.encoder.training
    return [*(metrics["loss"] for metrics in logged), logged[-1]["clips_per_s"]]


def main(folder: Path) -> None:
    accelerator, found = Accelerator(cpu=True), {}
    loop.time = SimpleNamespace(perf_counter=map(float, count()).__next__)  # type: ignore[assignment]
    for family, fields in ARCHITECTURES.items():
        for trainable in (True, False):
            architecture = {"model_type": family, **fields}
            source = EncoderSource(architecture=architecture, leading_tokens=LEADING_TOKENS.get(family))
            encoder = load_encoder(source, context=ContextRule("full"), trainable=trainable)
            name = f"{family}, {'trainable' if trainable else 'frozen'}"
            found[name] = train(accelerator, encoder, folder / family / str(trainable))
    if accelerator.is_main_process:
        (folder / "losses.json").write_text(json.dumps(found), encoding="utf-8")
    accelerator.end_training()
