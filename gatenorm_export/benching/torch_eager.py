"""The framework model in torch, eagerly, on a GPU or the CPU; the pruned one really lacks its attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gatenorm_export.architectures import adapter_for
from gatenorm_export.architectures.adapter import Modules
from gatenorm_export.artifacts import sha256_of
from gatenorm_export.benching.context import mixture_of_experts
from gatenorm_export.benching.cuda import GPU_SEQUENCES, cuda_torch, gpu_names
from gatenorm_export.benching.memory import AllocatorMemory, ProcessMemory
from gatenorm_export.benching.pairing import read_plan
from gatenorm_export.benching.probing import ITEMSIZE, probe_sizes, rates
from gatenorm_export.benching.protocol import LOADINGS, BenchModel, Memory, Pair, Side
from gatenorm_export.benching.timers import CudaEvents, Timer, WallClock
from gatenorm_export.benching.torch_model import TorchModel, torch_footprint, torch_work
from gatenorm_export.errors import InputError, RefusedError, needs
from gatenorm_export.kinds import kind_of
from gatenorm_export.model_configs import configs_from
from gatenorm_export.processor import device_name
from gatenorm_export.provenance import require_model
from gatenorm_export.records import ModelSpec
from gatenorm_export.records.bench import BenchDevice, Probe, Work

DeviceName = Literal["cpu", "cuda"]
Precision = Literal["fp32", "fp16", "bf16"]
TORCH_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class TorchEager:
    """BASE is a checkpoint, PRUNED a plan for it."""

    weight_copies = 1.2

    def __init__(self, device: DeviceName | None = None, precision: Precision | None = None) -> None:
        with needs("export", "gatenorm bench --backend torch"):
            import torch
        on_gpu = torch.cuda.is_available() if device is None else device == "cuda"
        self.where: DeviceName = "cuda" if on_gpu else "cpu"
        self.precision: Precision = precision or ("fp16" if on_gpu else "fp32")
        self.sequences: tuple[int, ...] = GPU_SEQUENCES if on_gpu else (64, 256, 512)
        self.loadings = 2 if on_gpu else LOADINGS
        self.memory: Memory = ProcessMemory()
        self.timer: Timer = WallClock()
        driver = None
        if on_gpu:
            torch = cuda_torch("torch")
            name, driver = gpu_names(torch)
            self.memory = AllocatorMemory(torch.cuda)
            self.timer = CudaEvents(torch.cuda.current_stream())
        else:
            name = device_name()
        self.device = BenchDevice(
            backend="torch",
            runtime=f"torch {torch.__version__} eager {self.precision}",
            device=name,
            driver=driver,
            threads=torch.get_num_threads(),
            timer=self.timer.name,
            memory="allocator" if on_gpu else "process",
        )

    def open(self, base: Path, pruned: Path) -> Pair:
        """A checkpoint and a plan that was made from it."""
        from gatenorm_export.sources import resolve_model

        if base.suffix == ".json" and base.is_file() and not (pruned.suffix == ".json" and pruned.is_file()):
            raise RefusedError(f"{base} is a plan and {pruned} is not: base and pruned are swapped; checkpoint first")
        if base.suffix in {".onnx", ".engine"} or (base / "model.onnx").is_file():
            raise InputError(f"{base}: with torch, BASE is a checkpoint and PRUNED a plan; graphs are for ort-cpu")
        plan = read_plan(pruned, str(base))
        spec = resolve_model(str(base))
        if kind_of(spec, plan.tower).kind.name != "decoder":
            raise RefusedError(f"{base}: only decoders have a prefill and a decode")
        require_model(plan, spec, where=str(base))
        load = partial(_from_checkpoint, spec, TORCH_TYPES[self.precision], self.where)
        modules = adapter_for(spec.architecture).tower(plan.tower)
        configs = configs_from(_config(spec))
        sides = self.sides(load, _on_meta(spec), modules, str(base), plan.drop, sha256=spec.digest)
        return Pair(
            *sides,
            n_layers=plan.n_layers,
            dropped=plan.drop,
            plan_sha256=sha256_of(pruned),
            longest=configs.max_positions,
            table_of_positions=configs.table_of_positions,
        )

    def sides(
        self,
        load: Callable[[], Any],
        counted: Any,
        modules: Modules,
        name: str,
        drop: Sequence[int],
        *,
        sha256: str | None = None,
    ) -> tuple[Side, Side]:
        """Both sides of the model that ``load`` makes, whose blocks and attention lie where ``modules`` says.

        ``counted`` is the same model for counting; it may lack storage.
        """
        itemsize = ITEMSIZE[TORCH_TYPES[self.precision]]
        size = itemsize * sum(parameter.numel() for parameter in counted.parameters())
        unknown = mixture_of_experts(configs_from(counted.config))

        def side(layers: tuple[int, ...]) -> Side:
            def loaded() -> BenchModel:
                model = load()
                notes: tuple[str, ...] = ()
                if layers:
                    from gatenorm_export.benching.torch_surgery import remove_attention_modules

                    notes = remove_attention_modules(model, modules, layers)
                return TorchModel(model, self.where, self.timer, notes)

            work = torch_work(counted, modules, layers, TORCH_TYPES[self.precision])
            return Side(
                path=f"{name} without {len(layers)} layers" if layers else name,
                sha256=sha256,
                file_bytes=size,
                load=loaded,
                cached=True,
                work=None if unknown else work,
                why_no_work=unknown or "",
                kv_bytes_per_token=work.kv_bytes_per_token,
                footprint=torch_footprint(counted, itemsize),
            )

        return side(()), side(tuple(drop))

    def control(self, native: Path, pair: Pair) -> Side:
        """In torch the pruned model is the native one."""
        raise InputError(f"{native}: --control is for graphs and engines; in torch the pruned model has no such layers")

    def probe(self, like: Work) -> Probe:
        """Products of one row and of many with matrices about as large as the model's."""
        import torch

        sizes = probe_sizes(like.weight_bytes, gpu=self.where == "cuda")
        dtype = getattr(torch, like.dtype)
        with torch.inference_mode():
            weights = [
                torch.randn((sizes.inner, sizes.outer), dtype=dtype, device=self.where) / sizes.inner**0.5
                for _ in range(sizes.count)
            ]

            def product(value: Any) -> None:
                for weight in weights:
                    value = value @ weight

            seconds = {}
            for rows in (1, sizes.rows):
                ones = torch.ones((rows, sizes.inner), dtype=dtype, device=self.where)
                product(ones)
                seconds[rows] = min(self.timer.timed(partial(product, ones)) for _ in range(5))
        return rates(sizes, seconds, like.dtype, "products of one row and of many in torch")


def _from_checkpoint(spec: ModelSpec, dtype: str, where: DeviceName) -> Any:
    import torch

    from gatenorm_export.framework import load_framework_model

    model, _ = load_framework_model(spec)
    return model.to(where, getattr(torch, dtype))


def _on_meta(spec: ModelSpec) -> Any:
    """The checkpoint's model without storage, for counting."""
    import torch
    import transformers

    config = _config(spec)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


def _config(spec: ModelSpec) -> Any:
    from gatenorm_export.silence import silenced

    with needs("export", "reading the checkpoint's config"):
        from transformers import AutoConfig
    options = {"gguf_file": Path(spec.path).name} if spec.source == "gguf" else {}
    place = str(Path(spec.path).parent) if spec.source == "gguf" else spec.path
    with silenced():
        return AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False, **options)
