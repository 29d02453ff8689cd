# SPDX-License-Identifier: Apache-2.0
"""TorchRec's sharded collections, with our kernel for tables of 8, 4 and 2 bits.

A quantised table keeps TorchRec's compute kernel FUSED and has the data type INT8, INT4 or INT2, so
planner, input and output distribution and training pipeline are the stock ones, and TorchRec groups
it apart from fp32 and fp16 tables. Overridden is what looks a table up (`_create_lookups`), what it
is in a state dict (`_initialize_torch_state`), and its initialisation. Not chosen:
`CUSTOMIZED_KERNEL` as the compute kernel, which the planner rejects.

In a state dict a quantised table is `TABLE.codes`, uint8 `[rows, bytes]`, and `TABLE.step`, float32
`[rows, blocks]`, both sharded as the table is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingCollection
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_kernel import BaseEmbedding
from torchrec.distributed.embedding_lookup import (
    GroupedEmbeddingsLookup,
    GroupedPooledEmbeddingsLookup,
)
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import (
    EmbeddingBagCollectionSharder,
    ShardedEmbeddingBagCollection,
)
from torchrec.distributed.types import (
    ParameterSharding,
    ShardedTensor,
    ShardingEnv,
    ShardingType,
)
from torchrec.modules.embedding_configs import pooling_type_to_str

from deltarec.embeddings.quantised_kernel import BITS, SETTINGS, QuantisedKernel, sharded
from deltarec_kernels import Pooling, row_bytes

_SUMMED = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value)
"""Shardings of which TorchRec makes the mean itself, after the parts of a bag are together."""


class _Lookup(nn.Module):
    """What both kinds of look-up have in common: the second pass."""

    _emb_modules: nn.ModuleList
    second_pass: bool = False

    def kernels(self) -> Iterator[QuantisedKernel]:
        for kernel in self._emb_modules:
            if isinstance(kernel, QuantisedKernel):
                yield kernel

    def set_second_pass(self, on: bool) -> None:
        self.second_pass = on
        for kernel in self.kernels():
            kernel.second_pass = on

    def anchors(self) -> list[Tensor]:
        """What a second backward must reach: every kernel, and this rank's end of the exchange."""
        return [self._dummy_embs_tensor, *(kernel.anchor for kernel in self.kernels())]  # pyright: ignore

    def forward(self, sparse_features: Any) -> Tensor:
        found = super().forward(sparse_features)
        return _Anchored.apply(found, self._dummy_embs_tensor) if self.second_pass else found


class _Anchored(torch.autograd.Function):
    """The identity, which makes backward come by on ranks that have nothing to learn.

    The exchange of vectors is a collective in backward too: every rank must take part.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, anchor: Tensor) -> Tensor:
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class PooledLookup(_Lookup, GroupedPooledEmbeddingsLookup):
    """Look-up of bags; our kernel for quantised tables, FBGEMM's for the others."""

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        device: torch.device | None,
        pg: dist.ProcessGroup | None,
        sharding_type: ShardingType | None,
        env: Any,
    ) -> BaseEmbedding:
        if config.data_type not in BITS:
            return super()._create_embedding_kernel(config, device, pg, sharding_type, env)
        pooling: Pooling = "sum"
        if pooling_type_to_str(config.pooling) == "mean":
            summed = sharding_type is not None and sharding_type.value in _SUMMED
            pooling = "sum" if summed else "mean"
        return QuantisedKernel(config, pg, device, pooling)


class SequenceLookup(_Lookup, GroupedEmbeddingsLookup):
    """Look-up of sequences; likewise."""

    def _create_embedding_kernel(
        self,
        config: GroupedEmbeddingConfig,
        pg: dist.ProcessGroup | None,
        device: torch.device | None,
        env: Any = None,
    ) -> BaseEmbedding:
        if config.data_type not in BITS:
            return super()._create_embedding_kernel(config, pg, device, env)
        return QuantisedKernel(config, pg, device, "none")


class QuantisedTables(nn.Module):
    """What both kinds of sharded collection have in common.

    Attributes:
        keeps_input: whether to remember a batch's distributed ids for `look_up_again`.
        frozen: whether the tables are not trained: look-ups then keep no graph.
    """

    TABLES: ClassVar[str]
    _lookups: list[nn.Module]
    module_sharding_plan: Any
    keeps_input: bool = False
    frozen: bool = False
    _input: tuple[Any, Any] | None = None

    def kernels(self) -> Iterator[QuantisedKernel]:
        """The kernels of quantised tables on this rank."""
        for lookup in self._lookups:
            if isinstance(lookup, _Lookup):
                yield from lookup.kernels()

    def anchors(self) -> list[Tensor]:
        """The leaves that a second backward must reach, on every rank."""
        if self.frozen:
            return []
        return [
            a for lookup in self._lookups if isinstance(lookup, _Lookup) for a in lookup.anchors()
        ]

    def compute_and_output_dist(self, ctx: Any, input: Any) -> Any:
        """Look-ups and the exchange of their vectors, as in TorchRec."""
        if self.keeps_input and torch.is_grad_enabled():
            self._input = ctx, input
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return super().compute_and_output_dist(ctx, input)  # pyright: ignore

    def look_up_again(self) -> Any:
        """The output for the last batch's ids, by the tables as they are now.

        Ids are not exchanged again. Differentiable for tables that await a second gradient.
        """
        assert self._input is not None, "a first look-up comes before"
        (ctx, input), self._input = self._input, None
        lookups = self._lookups
        # A replicated table's DistributedDataParallel would wait for a backward that never comes.
        self._lookups = [
            lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
            for lookup in lookups
        ]
        self._set_second_pass(not self.frozen)
        try:
            with torch.set_grad_enabled(not self.frozen):
                return super().compute_and_output_dist(ctx, input)  # pyright: ignore
        finally:
            self._set_second_pass(False)
            self._lookups = lookups

    def reset_parameters(self) -> None:
        """Nothing: `sharding.shard` initialises all tables, whatever they are."""

    def _shardings(self) -> Iterable[tuple[str, Any]]:
        """What TorchRec made of the plan: for each kind of sharding, the tables of each rank."""
        raise NotImplementedError

    def _create_lookup(
        self, kind: str, configs: list[GroupedEmbeddingConfig], device: Any
    ) -> nn.Module:
        raise NotImplementedError

    def _create_lookups(self) -> None:
        for kind, sharding in self._shardings():
            if kind == ShardingType.DATA_PARALLEL.value:
                self._lookups.append(sharding.create_lookup())
                continue
            configs = sharding._grouped_embedding_configs_per_rank[sharding._rank]
            self._lookups.append(self._create_lookup(kind, configs, sharding._device))

    def _set_second_pass(self, on: bool) -> None:
        for lookup in self._lookups:
            if isinstance(lookup, _Lookup):
                lookup.set_second_pass(on)

    def _initialize_torch_state(self, skip_registering: bool = False) -> None:
        """Publish quantised tables as codes and steps, the others as TorchRec does.

        TorchRec leaves tables of a customised kernel to its subclasses: that is what quantised ones
        are called as long as this lasts.
        """
        plan = self.module_sharding_plan
        custom = EmbeddingComputeKernel.CUSTOMIZED_KERNEL.value
        self.module_sharding_plan = {
            name: replace(parameter, compute_kernel=custom) if name in self._bits() else parameter
            for name, parameter in plan.items()
        }
        super()._initialize_torch_state(skip_registering)  # pyright: ignore
        self.module_sharding_plan = plan
        self._published = dict(self._codes_and_steps())
        self._register_state_dict_hook(_publish)
        self.register_load_state_dict_pre_hook(_load)

    def _bits(self) -> dict[str, int]:
        """The quantised tables, and the bits of their codes."""
        configs: dict[str, Any] = self._table_name_to_config  # pyright: ignore
        return {n: BITS[c.data_type] for n, c in configs.items() if c.data_type in BITS}

    def _column_blocks(self) -> dict[str, int]:
        """Of the quantised tables, also those of which this rank has no part."""
        return {
            table.name: table.fused_params[SETTINGS].column_block
            for _, sharding in self._shardings()
            for configs in sharding._grouped_embedding_configs_per_rank
            for config in configs
            for table in config.embedding_tables
            if config.data_type in BITS
        }

    def _codes_and_steps(self) -> Iterator[tuple[str, ShardedTensor]]:
        pg: Any = self._env.process_group  # pyright: ignore
        blocks = self._column_blocks()
        for name, bits in self._bits().items():
            codes, steps = [], []
            for kernel in self.kernels():
                for table, index, metadata in kernel.shards():
                    if table == name:
                        codes.append((metadata, kernel.tables.codes_of(index)))
                        steps.append((metadata, kernel.tables.step_of(index)))
            plan = self.module_sharding_plan[name].sharding_spec.shards
            block = blocks[name]
            yield (
                f"{name}.codes",
                sharded(plan, codes, lambda c, bits=bits: row_bytes(c, bits), pg, torch.uint8),
            )
            yield (
                f"{name}.step",
                sharded(plan, steps, lambda c, block=block: c // block, pg, torch.float32),
            )


def _publish(module: Any, destination: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Put codes and steps into a state dict."""
    for name, tensor in module._published.items():
        destination[f"{prefix}{module.TABLES}.{name}"] = tensor


def _load(
    module: Any,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    missing_keys: list[str],
    *_: Any,
) -> None:
    """Take codes and steps out of a state dict, and into the tables."""
    for name, tensor in module._published.items():
        key = f"{prefix}{module.TABLES}.{name}"
        given = state_dict.pop(key, None)
        if given is None:
            missing_keys.append(key)
            continue
        for own, other in zip(tensor.local_shards(), given.local_shards(), strict=True):
            own.tensor.copy_(other.tensor)


class ShardedBags(QuantisedTables, ShardedEmbeddingBagCollection):
    """An EmbeddingBagCollection with quantised tables among its own."""

    TABLES = "embedding_bags"

    def _shardings(self) -> Iterable[tuple[str, Any]]:
        return zip(self._sharding_types, self._embedding_shardings, strict=True)

    def _create_lookup(
        self, kind: str, configs: list[GroupedEmbeddingConfig], device: Any
    ) -> nn.Module:
        group = self._env.process_group
        # TorchRec tells FBGEMM's kernels only of these kinds, for the sake of the mean.
        told = ShardingType(kind) if kind in _SUMMED else None
        return PooledLookup(configs, device, group, None, True, told, self._env)


class ShardedSequences(QuantisedTables, ShardedEmbeddingCollection):
    """An EmbeddingCollection with quantised tables among its own."""

    TABLES = "embeddings"

    def _shardings(self) -> Iterable[tuple[str, Any]]:
        return self._sharding_type_to_sharding.items()

    def _create_lookup(
        self, kind: str, configs: list[GroupedEmbeddingConfig], device: Any
    ) -> nn.Module:
        return SequenceLookup(configs, self._env.process_group, device, self._env)


class BagSharder(EmbeddingBagCollectionSharder):
    """Makes `ShardedBags`, by every sharding on every device.

    The stock one has no row-wise bags on CPU.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        return ShardedBags(
            module,
            params,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn,
        )


class Sharder(EmbeddingCollectionSharder):
    """Makes `ShardedSequences`; without index de-duplication, which fails on CPU."""

    def __init__(self) -> None:
        super().__init__(use_index_dedup=False)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [kind.value for kind in ShardingType]

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingCollection:
        return ShardedSequences(
            module,
            params,
            env,
            self.fused_params,
            device,
            self.qcomm_codecs_registry,
            module_fqn=module_fqn,
        )


def lookup_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that look up, which TorchRec hides from `model.modules()`, and all others."""
    for module in model.modules():
        yield module
        for lookup in getattr(module, "_lookups", ()):
            yield from lookup.modules()


def quantised_tables(model: nn.Module) -> list[QuantisedTables]:
    """The collections of a sharded model, which may hold quantised tables."""
    return [module for module in model.modules() if isinstance(module, QuantisedTables)]
