"""What a GPU would take, run forward on a CUDA device without memory: a tensor on the wrong device raises.

A library of a few lines tells torch that there is a CUDA device; the tensors on it are fake ones, with a shape and a
device alone. Backward, streams and events do not exist there. `test_cuda_rehearsal.py` calls `rehearse` in processes
of their own: the library stays, and interpreters that have fake CUDA tensors may crash while they shut down.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from flcache.batch import ChannelStatistics, LatentBatch, VideoBatch
from flcache.cache import CacheSpec, get_codec
from flcache.cache.read.clips import StoredBatch
from flcache.cache.read.delivery import CudaDelivery, Decoder
from flcache.cache.read.ring import BufferShape, make_buffer
from flcache.cache.write.on_device import CastLatents, can_cast, cast_on_device
from flcache.encoder import ContextRule, EncoderSource, LatentVideoModel
from flcache.encoder.loading import _latent_model, _stated_config
from flcache.encoder.torchvision_ops import import_transformers
from flcache.engines import lane
from flcache.evaluation.baselines import BASELINES
from flcache.evaluation.rollout import _Found
from flcache.evaluation.sampling import Sampling
from flcache.predictor import Predictor, PredictorOptions, build_predictor, predictor_class
from flcache.training import Objective, WorldModel

B, SHAPE = 2, (4, 4, 4, 24)
SIZES = {"depth": 2, "width": 24, "heads": 2, "mlp_width": 24, "merge": 2}
CUDA = torch.device("cuda", 0)
ENCODER = {
    "model_type": "vjepa2",
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 8,
    "pred_hidden_size": 12,
    "pred_num_attention_heads": 1,
    "pred_num_hidden_layers": 1,
}


@contextmanager
def cuda_without_memory(library: Path) -> Iterator[None]:
    """Inside, tensors may be on `CUDA`, and are fake."""
    ctypes.CDLL(str(library))
    mode, transformers = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), import_transformers()
    undrawn = patch.object(transformers.PreTrainedModel, "init_weights", lambda self: None)  # it draws by rejection,
    unchanged = patch.object(nn.init, "trunc_normal_", lambda tensor, *given, **named: tensor)  # and looks at values
    with mode, undrawn, unchanged, torch.no_grad():
        yield


def rehearse(library: Path, part: str, *arguments: str) -> None:
    """Run the function called `part`, say so, and leave without shutting down."""
    gc.disable()
    globals()[part](library, *arguments)
    print("rehearsed", flush=True)
    os._exit(0)


def misplacing(library: Path) -> None:
    """Raises, as every part would that mixed devices."""
    with cuda_without_memory(library):
        check_loss(a_world_model("parallel", "joint", None), a_batch().to("cpu"))


def encoding(library: Path) -> None:
    """Preprocessing on the device, and every way of encoding."""
    with cuda_without_memory(library):
        for rule in (ContextRule("step"), ContextRule("window", window=2), ContextRule("prefix"), ContextRule("full")):
            check(an_encoder(rule)(some_frames()), (B, *SHAPE))


def storing(library: Path, codec_name: str) -> None:
    """Frames up, latents down, cast and measured on the device where the codec allows it."""
    context, calibration = {"mode": "step", "seen_until": [0, 1, 2, 3]}, {"mean": [0.0] * 24, "std": [1.0] * 24}
    hard = {"layout": {"shape": list(SHAPE)}, "context": context, "codec": codec_name, "calibration": calibration}
    spec = CacheSpec(hard, {})
    with cuda_without_memory(library), without_streams():
        page_locked = patch.object(lane, "_page_locked", lambda values: torch.zeros_like(values, device="cpu"))
        with page_locked:
            encoding = lane.CudaLane(an_encoder(ContextRule("step")), spec).encode(some_frames())
        check(encoding.values, (B, *SHAPE))
        back = encoding.back.tensors() if isinstance(encoding.back, CastLatents) else [encoding.back]
        assert can_cast(spec) == (len(back) == 3)
        for tensor in back:
            assert tensor.device.type == "cpu" and len(tensor) == B
        if can_cast(spec):
            for tensor in cast_on_device(spec, encoding.values).tensors():
                assert tensor.device == CUDA


def predicting(library: Path, kind: str) -> None:
    """The loss of latents from a cache, with both attentions."""
    with cuda_without_memory(library):
        for attention in ("joint", "factorised"):
            check_loss(a_world_model(kind, attention, None), a_batch())


def training_from_videos(library: Path) -> None:
    """The loss of frames, with a frozen encoder and with one that trains."""
    with cuda_without_memory(library):
        for trainable in (False, True):
            model = a_world_model("parallel", "joint", an_encoder(ContextRule("step"), trainable=trainable))
            check_loss(model, some_videos().to(CUDA))
            model.update_target(0.9)


def reading(library: Path, codec_name: str) -> None:
    """From a filled batch buffer to a standardised batch."""
    codec = get_codec(codec_name, {"mean": [0.0] * SHAPE[-1], "std": [1.0] * SHAPE[-1]})
    layouts = codec.payloads(SHAPE)
    shape = BufferShape(layouts, SHAPE, B, SHAPE[0], decodes=False, checks=False, pinned=False)
    buffer = make_buffer(shape)
    times, valid = np.zeros((B, SHAPE[0]), np.float32), np.ones((B, SHAPE[0]), np.bool_)
    statistics = ChannelStatistics(torch.zeros(SHAPE[-1]), torch.ones(SHAPE[-1]))
    with cuda_without_memory(library), without_streams():
        for owners, caches in (((0, 0), 1), ((0, 1), 2)):
            delivery = CudaDelivery(Decoder((codec,) * caches, (statistics,) * caches), SHAPE, CUDA)
            stored = StoredBatch(owners, times, valid, ("a", "b"), {"actions": np.zeros((B, SHAPE[0], 3), np.float32)})
            latents, *others, arrays = delivery.deliver(buffer, stored, delivery.stage(buffer, stored))
            check(latents, (B, *SHAPE))
            check(arrays["actions"], (B, SHAPE[0], 3))
            for tensor in others:
                check(tensor, (B, SHAPE[0]))


def evaluating(library: Path, kind: str) -> None:
    """A batch against every baseline that needs no training; with actions where the predictor takes them."""
    with cuda_without_memory(library):
        with CUDA:
            predictor = a_predictor(kind, "joint", actions=predictor_class(kind).takes_actions)
        sampling = Sampling(predictor.sample, 2, 0) if predictor.generative else None
        found = _Found(None, predictor.num_actions > 0)
        found.add(0, a_batch(), predictor.predict, BASELINES, sampling)
        assert len(found.parts) == 1


def a_world_model(kind: str, attention: str, encoder: LatentVideoModel | None) -> WorldModel:
    objective = Objective("l2" if kind == "flow_matching" else "l1", rollout_steps=2)
    with CUDA:
        statistics = ChannelStatistics(torch.zeros(SHAPE[-1]), torch.ones(SHAPE[-1]))
        predictor = a_predictor(kind, attention)
        return WorldModel(predictor, statistics, boundaries=[1, 2], objective=objective, encoder=encoder)


def an_encoder(rule: ContextRule, *, trainable: bool = False) -> LatentVideoModel:
    with CUDA:
        source = EncoderSource(architecture=ENCODER)
        model = import_transformers().AutoModel.from_config(_stated_config(source))
        return _latent_model(model, source, rule, trainable).eval()


def a_predictor(kind: str, attention: str, *, actions: bool = False) -> Predictor:
    options = PredictorOptions(kind, "tiny", SIZES, attention=attention, actions=actions)  # type: ignore[arg-type]
    return build_predictor(options, SHAPE, 3)


def a_batch() -> LatentBatch:
    with CUDA:
        latents, times = torch.zeros(B, *SHAPE), torch.zeros(B, SHAPE[0])
        valid, arrays = torch.ones(B, SHAPE[0], dtype=torch.bool), {"actions": torch.zeros(B, SHAPE[0], 3)}
        return LatentBatch(latents, latents, times, valid, ("a", "b"), 2, arrays)


def some_frames() -> list[Tensor]:
    return [torch.zeros(8, 40 + 8 * clip, 48, 3, dtype=torch.uint8) for clip in range(B)]


def some_videos() -> VideoBatch:
    times, valid = torch.zeros(B, SHAPE[0]), torch.ones(B, SHAPE[0], dtype=torch.bool)
    return VideoBatch(tuple(some_frames()), times, valid, ("a", "b"), 2)


def check_loss(model: WorldModel, batch: LatentBatch | VideoBatch) -> None:
    result = model(batch)
    for value in (result.loss, *result.metrics.values()):
        check(value, ())
    check(result.per_clip, (B,))


def check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    assert tensor.device == CUDA and tuple(tensor.shape) == shape, (tensor.device, tensor.shape, shape)


@contextmanager
def without_streams() -> Iterator[None]:
    class Nothing:
        def __init__(self, *given: Any, **named: Any) -> None: ...
        def __getattr__(self, name: str) -> Any:
            return lambda *given, **named: None

    replaced = dict.fromkeys(("Stream", "Event"), Nothing) | {"current_stream": Nothing}
    replaced |= {name: lambda *given: nullcontext() for name in ("stream", "device")}  # type: ignore[dict-item]
    kept_on = patch.object(Tensor, "record_stream", lambda *given: None)
    alike = patch.object(torch, "equal", lambda one, other: one.device == other.device)  # fake tensors have no values
    with patch.multiple(torch.cuda, **replaced), kept_on, alike:
        yield
