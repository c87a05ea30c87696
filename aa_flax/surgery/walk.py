"""The walk over a network that finds its strided layers and puts a blur to each."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from aa_flax import nn
from aa_flax.strided import Blurred
from aa_flax.surgery import blurs, refusals
from aa_flax.surgery.kinds import (
    BLURRED,
    KEEPS_PLACE,
    POOLS,
    Path,
    children,
    describe,
    is_activation,
    is_pointwise,
    pool_arguments,
    pool_of,
    strides_of,
)
from aa_flax.surgery.plan import Plan, Survey
from aa_flax.surgery.report import STRIDE_1, Change, SurgeryReport
from aa_flax.surgery.slots import ARROW, names_of, reach
from aa_flax.tracing.program import dotted


class Surgeon:
    """Walks over a copy of the network and changes it in place."""

    def __init__(self, plan: Plan, survey: Survey):
        self.plan, self.survey = plan, survey
        self.blurs = blurs.Blurs(plan, survey)
        self.changes: list[Change] = []
        self.seen: set[int] = set()
        self.replaced: dict[int, Any] = {}

    def report(self) -> SurgeryReport:
        """What was done, in the network's order."""
        return SurgeryReport(tuple(sorted(self.changes, key=lambda change: self.survey.rank(change.path))))

    def visit(self, path: Path, node: Any) -> Any:
        """Changes what lies below `node`; returns what has to stand in its place."""
        if isinstance(node, BLURRED) or id(node) in self.blurs.made:
            return node
        factory = self.plan.replacement_of(node)
        if factory is not None:
            return self._replace(path, node, factory)
        if isinstance(node, nnx.Module):
            if id(node) not in self.seen:
                self.seen.add(id(node))
                self._visit_module(path, node)
            return node
        if isinstance(node, functools.partial) and pool_of(node):
            return self._visit_pool(path, node)
        if not isinstance(node, tuple | list | Mapping):
            return node
        new = [(key, child, self.visit((*path, key), child)) for key, child in children(node)]
        if all(child is replaced for _, child, replaced in new):
            return node
        if isinstance(node, Mapping):
            return {key: replaced for key, _, replaced in new}
        values = [replaced for _, _, replaced in new]
        return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)

    def _replace(self, path: Path, node: Any, factory: Any) -> Any:
        if id(node) not in self.replaced:
            if self.plan.declines(dotted(path), node):
                self._skipped(path, node, refusals.LEFT_OUT)
                return node
            new = factory(node)
            if not callable(new):
                raise ValueError(
                    f"the factory that replaces {type(node).__name__} at {dotted(path)} has to return a layer, "
                    f"got {type(new).__name__}"
                )
            detail = f"replaced by {type(new).__name__}"
            if isinstance(node, Blurred) and node.input_blur is not None:
                new = blurs.before(new, node.input_blur)
            self.replaced[id(node)] = new
            self._done(path, node, detail)
        return self.replaced[id(node)]

    def _visit_module(self, path: Path, module: nnx.Module) -> None:
        for slot, source in self.plan.slots_of(module).items():
            self._fill_slot(path, module, slot, source)
        if isinstance(module, nnx.Sequential) and type(module).__call__ is nnx.Sequential.__call__:
            self._visit_chain(list(self._chain(path, module)))
        if isinstance(module, nnx.Conv | nnx.ConvTranspose):
            self._visit_conv(path, module)
            return
        for key, child in children(module):
            replaced = self.visit((*path, key), child)
            if replaced is not child:
                blurs.set_attribute(dotted(path), module, key, replaced)

    def _visit_conv(self, path: Path, conv: nnx.Conv | nnx.ConvTranspose) -> None:
        if not self._accepts(path, conv):
            return
        assert isinstance(conv, nnx.Conv)
        here, behind = dotted(path), None
        if self.plan.place == "activation":
            behind = self.survey.behind_activation(here)
        if behind is not None and self.plan.replacement_of(behind[1]):
            behind = None
        unseen = ": where its activation is cannot be seen" if self.plan.place == "activation" else ""
        if behind is not None:
            target, module = behind
            self._changed(path, conv, f"blur before {target}, behind the activation", conv.out_features)
            blurs.blur_input(target, module, self.blurs.layer(blurs.make_dense(conv), conv))
        elif self.plan.downsample == "blur" and is_pointwise(conv):
            self._changed(path, conv, "blur before the convolution, with which it commutes", conv.in_features, False)
            blurs.blur_input(here, conv, self.blurs.layer(blurs.make_dense(conv), conv))
        elif self.plan.downsample == "blur" and self.plan.place != "after":
            self._changed(path, conv, f"{blurs.KEEPS_STRIDE}{unseen}", conv.in_features, False)
            blurs.blur_input(here, conv, self.blurs.before(conv))
            blurs.keep_strides(conv)
        else:
            self._changed(path, conv, f"blur after the convolution{unseen}", conv.out_features)
            blurs.blur_output(here, conv, self.blurs.layer(blurs.make_dense(conv), conv))

    def _visit_pool(self, path: Path, pool: functools.partial) -> Any:
        given, function = pool_arguments(pool), pool_of(pool)
        strides = given.get("strides")
        reason = None
        if not strides or max(strides) == 1:
            reason = STRIDE_1
        elif function not in POOLS:
            reason = "only max_pool and avg_pool have an anti-aliased form"
        elif objection := refusals.pool_objection(self.plan, dotted(path), pool):
            reason = objection
        elif self.plan.downsample != "blur" and "count_include_pad" in given:
            reason = "count_include_pad is for downsample='blur' only"
        if reason:
            self._skipped(path, pool, reason)
            return pool
        assert strides
        refusals.check_axes(self.plan, dotted(path), pool, len(strides))
        self._done(path, pool, f"blur after a dense {function.__name__}")
        if self.plan.downsample == "blur":
            options = {"filter_size": self.plan.filter_size, "pad_type": self.blurs.pad_type()}
            return functools.partial(POOLS[function], **given, **options)
        layer = nn.MaxBlurPool if function is nnx.max_pool else nn.AvgBlurPool
        return layer(**given, downsample=self.blurs.layer(tuple(strides)))

    def _chain(self, path: Path, sequential: nnx.Sequential) -> Iterator[tuple[Path, nnx.List, int, Any]]:
        """The layers of a Sequential in order, Sequentials inside it unrolled unless they are also used elsewhere."""
        for i, layer in enumerate(sequential.layers):
            here = (*path, "layers", i)
            if isinstance(layer, nnx.Sequential) and len(self.survey.places[id(layer)]) == 1:
                yield from self._chain(here, layer)
            else:
                yield here, sequential.layers, i, layer

    def _visit_chain(self, chain: list[tuple[Path, nnx.List, int, Any]]) -> None:
        if self.plan.place != "activation":
            return
        for position, (path, _, _, layer) in enumerate(chain):
            if not isinstance(layer, nnx.Conv) or id(layer) in self.seen:
                continue
            behind = (entry for entry in chain[position + 1 :] if not isinstance(entry[3], KEEPS_PLACE))
            target = next(behind, None)
            if target is None or not is_activation(target[3]):
                continue
            self.seen.add(id(layer))
            if self._accepts(path, layer):
                activation_path, container, index, activation = target
                detail = f"blur after the activation {dotted(activation_path)}"
                self._changed(path, layer, detail, layer.out_features)
                blurred = blurs.after(activation, self.blurs.layer(blurs.make_dense(layer), layer))
                blurs.set_attribute(dotted(path[:-1]), container, str(index), blurred)

    def _fill_slot(self, path: Path, module: nnx.Module, slot: str, source: str | int) -> None:
        owner, name, current = reach(module, slot.removeprefix(ARROW), slot)
        if isinstance(source, int):
            if isinstance(current, BLURRED):
                here = dotted((*path, slot))
                self.changes.append(Change(here, f"pool stride {source}", "skipped", refusals.ALREADY))
            else:
                self._fill(path, slot, owner, name, current, self._pool_blur(path, module, slot, source))
            return
        conv = reach(module, source, slot)[2]
        if conv is None or id(conv) in self.seen:
            return
        if not isinstance(conv, nnx.Conv):
            kind, names = type(module).__name__, ", ".join(names_of(module))
            raise ValueError(
                f"the slot {slot!r} of {kind} names {source!r}, which is no nnx.Conv but {type(conv).__name__}; "
                f"{kind} has {names}"
            )
        self.seen.add(id(conv))
        here = (*path, *source.split("."))
        if isinstance(current, BLURRED):
            self._skipped(here, conv, refusals.ALREADY)
        elif self._accepts(here, conv):
            where = f"{type(module).__name__} puts it" if current is None else "its activation is"
            detail = f"blur in {dotted((*path, slot))}, where {where}"
            if slot.startswith(ARROW):
                detail = f"blur before {dotted((*path, slot.removeprefix(ARROW)))}"
            self._changed(here, conv, detail, conv.out_features)
            factors = blurs.make_dense(conv, mark=current is not None)
            follows = slot in getattr(type(module), "antialias_follows", ())
            self._fill(path, slot, owner, name, current, self.blurs.layer(factors, conv, follows=follows))

    def _fill(self, path: Path, slot: str, owner: Any, name: str, current: Any, blur: Any) -> None:
        """Puts a blur into a slot, around the function that it holds, or before the layer that an arrow points to."""
        if blur is None:
            return
        arrow = slot.startswith(ARROW)
        here = dotted((*path, *slot.removeprefix(ARROW).split(".")))
        holder = current if arrow and isinstance(current, nnx.Module) else owner
        places = self.survey.places.get(id(holder), [])
        if len(places) > 1 and (holder is current or "." in slot):
            what = "which" if holder is current else f"whose {name}"
            raise ValueError(f"{' and '.join(places)} are one module, {what} can hold no blur: give each place its own")
        if arrow and isinstance(current, nnx.Module):
            blurs.blur_input(here, current, blur)
            return
        if not isinstance(owner, nnx.Module):
            raise ValueError(
                f"{here} is in a {type(owner).__name__}, which cannot be changed: use nnx.List or nnx.Dict"
            )
        if arrow and not callable(current):
            raise ValueError(f"the slot {slot!r} points to {here}, which is {type(current).__name__} and no layer")
        if not arrow and current is not None and not is_activation(current):
            raise ValueError(
                f"the slot {here} holds {type(current).__name__}: it must hold None or an activation function; where a "
                f'module wraps the function, a dotted slot reaches into it, and "->{name}" blurs before it'
            )
        if current is None:
            layer = blur
        else:
            layer = blurs.before(current, blur) if arrow else blurs.after(current, blur)
        blurs.set_attribute(dotted(path), owner, name, layer)

    def _pool_blur(self, path: Path, module: nnx.Module, slot: str, stride: int) -> Any:
        here, layer = dotted((*path, slot)), f"pool stride {stride}"
        reason = refusals.pool_objection(self.plan, here, module)
        if reason:
            self.changes.append(Change(here, layer, "skipped", reason))
            return None
        detail = f"blur in {slot}, where {type(module).__name__} pools"
        self.changes.append(Change(here, layer, "antialiased", detail))
        return self.blurs.layer((stride,) * self.plan.spatial_dims)

    def _accepts(self, path: Path, conv: nnx.Conv | nnx.ConvTranspose) -> bool:
        """Whether a convolution is to be changed; if not, the report says why."""
        reason = refusals.objection(self.plan, self.survey, dotted(path), conv)
        if reason:
            self._skipped(path, conv, reason)
        return not reason

    def _changed(self, path: Path, conv: nnx.Conv, detail: str, channels: int, dense: bool = True) -> None:
        """Reports a convolution that is about to change; `channels` are those of the map that is blurred."""
        left = blurs.stride_left(strides_of(conv))
        change = Change(dotted(path), describe(conv), "antialiased", detail, left)
        self.changes.append(self.blurs.cost(change, conv, dense=dense, channels=channels))

    def _done(self, path: Path, layer: Any, detail: str) -> None:
        self.changes.append(Change(dotted(path), describe(layer), "antialiased", detail))

    def _skipped(self, path: Path, layer: Any, detail: str) -> None:
        self.changes.append(Change(dotted(path), describe(layer), "skipped", detail))
