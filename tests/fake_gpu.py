"""A GPU that is not there: tensors that say they are on `cuda` and are computed on the CPU, and a list of what would
make the host wait for the device.

A GPU runs behind the host. The host waits where it reads a value, where a shape depends on values (nonzero, a mask as
an index), and where it copies to the device from memory that is not pinned; torch.cuda.set_sync_debug_mode warns of
the same. Tensors of both devices in one operation are an error, as on a GPU.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, META = torch.device("cuda", 0), torch.device("meta")  # META: what torch's own code takes the tensors for
SHAPE_DEPENDS_ON_VALUES = {  # or a value is read: the kernels of these on CUDA copy a number to the host
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "bincount", "equal", "is_nonzero", "linalg_inv_ex", "nms", "_linalg_check_errors"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
HOST_LENGTHS = {"_pack_padded_sequence", "_pack_padded_sequence_backward"}  # they read lengths on the host
# What torch.use_deterministic_algorithms(True) refuses on CUDA, by the documentation of that function ("will throw a
# RuntimeError"), as names of the operations, and the backward kernels of torchvision's pooling of regions, which refuse
# it too (roi_pool_kernel.cu, roi_align_kernel.cu and so on: alertNotDeterministic).
REFUSED = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward", "max_unpool2d",
    "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward", "_ctc_loss_backward",
    "_embedding_bag_backward", "_embedding_bag_dense_backward", "put_", "histc", "median", "nanmedian",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "scatter_reduce", "scatter_reduce_",
    "_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward"}
REDUCTION_NONE = 0  # with which the kernel of torch.nn.NLLLoss adds up nothing, and does not refuse (NLLLoss2d.cu)
MADE_FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


class GpuTensor(Tensor):
    """`on_host`: the same tensor on the CPU; `reader`: the stream whose kernels read it, by `record_stream`."""

    on_host: Tensor
    reader: object = None
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_host: Tensor) -> GpuTensor:
        made = Tensor._make_wrapper_subclass(cls, on_host.shape, strides=on_host.stride(), dtype=on_host.dtype,
                                             storage_offset=on_host.storage_offset(), device=META)
        made.on_host = on_host
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA if torch._C._len_torch_function_stack() else META  # META within what DeviceNames has called

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise RuntimeError(f"{func} outside of `with FakeGpu()`")

    def record_stream(self, stream: object) -> None:
        self.reader = stream

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"GpuTensor({list(self.shape)}, {self.dtype})"


def host_copy(tensor: Tensor | None) -> Tensor:
    assert isinstance(tensor, GpuTensor)
    return tensor.on_host


def to_host(tensor: Tensor) -> Tensor:
    return tensor.on_host if isinstance(tensor, GpuTensor) else tensor


def is_on_gpu(value: object) -> bool:
    return isinstance(value, GpuTensor)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Those among the arguments of an operation of torch's."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The arguments, or what an operation returns, with other tensors; torch's own tree_map takes far longer."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map_tensors(function, item) for item in value)
    return value


class FakeGpu(TorchDispatchMode):
    """Context manager. `waits`: (operation, file, function) of everything that waited; `operations`: names of the
    operations that ran on the device, backward ones too; `refused`: those of them that a deterministic run refuses."""

    def __init__(self):
        super().__init__()
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.operations: Counter[str] = Counter()
        self.refused: set[str] = set()
        self.pinned: dict[int, Tensor] = {}
        self.names = DeviceNames(self)

    def __enter__(self):
        self.names.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self.names.__exit__(*exception)

    def wait(self, operation: str) -> None:
        """Notes the nearest line of dltrain or torchvision, else of torch or the test."""
        frames = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(2))]
        for frame in frames:
            file = frame.co_filename
            for package in ("/dltrain/", "/torchvision/"):
                if package in file and "/tests/" not in file:
                    self.waits[operation, package.strip("/") + "/" + file.split(package)[-1], frame.co_name] += 1
                    return
        self.waits[operation, Path(frames[0].co_filename).name, frames[0].co_name] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        tensors = [*tensors_in((args, kwargs))]
        on_gpu = [t for t in tensors if isinstance(t, GpuTensor)]
        on_host = [t for t in tensors if not is_on_gpu(t) and t.dim()]
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "meta":
            kwargs["device"] = torch.device("cpu")
        to_gpu = bool(on_gpu) if target is None else torch.device(target).type == "meta"
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            to_gpu = is_on_gpu(args[0]) if name == "copy_" else to_gpu
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if is_on_gpu(source) != to_gpu and not (to_gpu and non_blocking and id(source) in self.pinned):
                self.wait("copy to the host" if not to_gpu else "copy from memory that is not pinned")
        elif name in INDEXING:
            if any(i is not None and (i.dtype in (torch.bool, torch.uint8)) for i in args[1]):
                self.wait("index by a mask")
            elif any(i is not None and not is_on_gpu(i) and i.numel() for i in args[1]):
                self.wait("index on the host")
        elif name in SHAPE_DEPENDS_ON_VALUES or (
                name == "repeat_interleave" and func._overloadname == "Tensor" and kwargs.get("output_size") is None):
            self.wait(name)
        elif on_gpu and on_host and name not in HOST_LENGTHS:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but some are on cuda, others "
                               f"on the cpu")
        self.operations[name] += 1
        if name in REFUSED or (name == "nll_loss2d_forward" and args[3] != REDUCTION_NONE) or (
                name == "bincount" and len(args) > 1 and args[1] is not None):
            self.refused.add(name)
        wrappers = {id(t.on_host): t for t in on_gpu}
        out = func(*map_tensors(to_host, args), **map_tensors(to_host, kwargs))
        if not to_gpu:
            return out
        if name in HOST_LENGTHS:
            return (GpuTensor(out[0]), out[1]) if isinstance(out, tuple) else GpuTensor(out)
        return map_tensors(lambda t: wrappers[id(t)] if id(t) in wrappers else GpuTensor(t), out)


class DeviceNames(TorchFunctionMode):
    """Sends `device="cuda"` to FakeGpu, and notes what never reaches it."""

    def __init__(self, gpu: FakeGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tuple(map(as_meta, args)), {key: as_meta(value) for key, value in (kwargs or {}).items()}
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            self.gpu.pinned[id(pinned)] = pinned
            return pinned
        if func in (Tensor.tolist, Tensor.numpy) and is_on_gpu(args[0]):
            self.gpu.wait(func.__name__)
            return func(args[0].on_host, *args[1:], **kwargs)
        if func in MADE_FROM_VALUES:
            place = kwargs.pop("device", None)
            on_gpu = place == META or (place is None and func is Tensor.new_tensor and is_on_gpu(args[0]))
            if func is Tensor.new_tensor and is_on_gpu(args[0]):
                args = (args[0].on_host, *args[1:])
            if is_on_gpu(args[0]):
                return args[0]
            made = func(*args, **kwargs)
            if not on_gpu:
                return made
            self.gpu.wait("tensor from values of the host")
            return GpuTensor(made)
        if func is Tensor.__getitem__ and is_on_gpu(args[0]) and any(
                isinstance(index, list) for index in (args[1] if isinstance(args[1], tuple) else (args[1],))):
            self.gpu.wait("index by a list")
        return func(*args, **kwargs)


def as_meta(value: object) -> object:
    if isinstance(value, torch.device | str) and str(value).startswith("cuda"):
        return META
    return value
