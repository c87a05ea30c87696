"""The way that values take through a traced network: which modules read the input, and what follows a layer."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from aa_flax.tracing.program import GAVE, TOOK, TracedProgram, inner_programs, module_of

PRODUCTS = ("conv_general_dilated", "dot_general")
_LOOPS = ("scan", "while", "cond")
# Of a map and of what is the same everywhere on it.
_LINEAR = ("add", "sub", "mul", "div", "neg", "convert_element_type", "copy", "name", "reduce_precision")
_POINTWISE = (
    *_LINEAR,
    *("max", "min", "clamp", "select_n", "abs", "sign", "square", "integer_pow", "pow", "sqrt", "rsqrt", "cbrt"),
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc", "sin", "cos", "atan2"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite", "stop_gradient"),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a program whose inner programs are unrolled.

    Attributes:
        name: of the primitive, or `join` for what comes out of a loop or a branch.
        scopes: the scopes that it runs in.
        context: the loops and branches that it is in.
        operands: numbers of the values that it takes; -1 for literals.
        results: numbers of the values that it gives.
        equation: the operation itself.
    """

    name: str
    scopes: str
    context: tuple[int, ...]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    equation: JaxprEqn

    @property
    def tag(self) -> str:
        return str(self.equation.params["name"]) if self.name == "name" else ""


class Flow:
    """A traced network as one list of steps.

    Args:
        program: what `aa_flax.tracing.program.traced` gives.
    """

    def __init__(self, program: TracedProgram):
        self._numbers = itertools.count()
        self.arguments: dict[int, tuple[int, ...]] = {}
        self.uses: Counter[int] = Counter()
        env = self._arguments_of(program.jaxpr)
        self.inputs = {env[v] for v in program.inputs}
        self.steps = list(self._unroll(program.jaxpr, "", (), env))
        self.outputs = {env[v] for v in program.jaxpr.outvars if not isinstance(v, Literal)}
        self.uses.update(self.outputs)
        named = [step for step in self.steps if step.tag]
        self.tags = Counter(step.tag for step in named)
        self._named = {step.tag: step for step in named}
        self._makers = {step.results[0]: step for step in named}

    def _arguments_of(self, jaxpr: Jaxpr) -> dict[Var, int]:
        """Numbers for what a program is given."""
        env = {v: next(self._numbers) for v in (*jaxpr.invars, *jaxpr.constvars)}
        self.arguments.update(zip(env.values(), _shapes(list(env)), strict=True))
        return env

    def _unroll(self, jaxpr: Jaxpr, outer: str, context: tuple[int, ...], env: dict[Var, int]) -> Iterator[Step]:
        for number, equation in enumerate(jaxpr.eqns):
            scopes = f"{outer}/{equation.source_info.name_stack}"
            operands = tuple(-1 if isinstance(v, Literal) else env[v] for v in equation.invars)
            name, programs = equation.primitive.name, list(inner_programs(equation))
            once = len(programs) == 1 and name not in _LOOPS and len(programs[0].invars) == len(operands)
            inside = context if once else (*context, number)
            given: list[tuple[int, ...]] = []
            for inner in programs:
                # Where the counts differ (branches, loops) the arguments in common are the last ones.
                last = zip(reversed(inner.invars), reversed(operands), strict=False)
                own = self._arguments_of(inner) | dict(last)
                yield from self._unroll(inner, scopes, inside, own)
                given.append(tuple(-1 if isinstance(v, Literal) else own[v] for v in inner.outvars))
            if once and len(given[0]) == len(equation.outvars):
                env.update(zip(equation.outvars, given[0], strict=True))
                continue
            results_inside = tuple(itertools.chain(*given))
            # What a loop or a branch takes and gives counts as used, whatever its programs do with it.
            self.uses.update((*operands, *results_inside))
            env.update((v, next(self._numbers)) for v in equation.outvars)
            taken = results_inside or operands
            results = tuple(env[v] for v in equation.outvars)
            yield Step("join" if programs else name, scopes, context, taken, results, equation)

    def readers(self) -> frozenset[str]:
        """Dotted paths of the modules that are the first to take a product with the input."""
        made, found = set(self.inputs), set()
        for step in self.steps:
            if made.isdisjoint(step.operands):
                continue
            if step.name in PRODUCTS:
                found.add(module_of(step.scopes))
            else:
                made.update(step.results)
        return frozenset(found)

    def source(self, path: str, layers: Collection[str]) -> str | None:
        """The one of these layers whose output a module takes where nothing else sees it, each called once, or None."""
        if self.tags[TOOK + path] != 1:
            return None
        step = taken = self._named[TOOK + path]
        # Between the two lie at most the names of modules that they are the last and the first layer of.
        while self.uses[step.operands[0]] == 1 and step.operands[0] in self._makers:
            step = self._makers[step.operands[0]]
            layer = step.tag.removeprefix(GAVE)
            if step.tag.startswith(GAVE) and layer in layers:
                return layer if self.tags[step.tag] == 1 and step.context == taken.context else None
        return None

    def behind_activation(self, path: str) -> str | None:
        """The module that alone takes what an activation makes of a layer's output, or None.

        Between the two lie only operations that treat every place of the map by itself and alike, one of them not
        linear: subsampling the module's input then gives the samples that a strided layer would have led to.
        """
        if self.tags[GAVE + path] != 1:
            return None
        start = self._named[GAVE + path]
        # For each value made of the output, whether it has passed what is not linear.
        made, targets = {start.results[0]: False}, set()
        alike = _Alike(start, self.arguments)
        for step in self.steps:
            own = [made[o] for o in step.operands if o in made]
            if not own:
                alike.note(step)
                continue
            bent = any(own)
            if step.context != start.context:
                return None
            if bent and step.tag.startswith(TOOK):
                targets.add(step.tag.removeprefix(TOOK))
                continue
            if step.name not in _POINTWISE or not all(o in made or alike.holds(o) for o in step.operands):
                return None
            linear = step.name in _LINEAR and len(own) == 1
            made.update(dict.fromkeys(step.results, bent or not linear))
        if len(targets) != 1 or not self.outputs.isdisjoint(made):
            return None
        target = targets.pop()
        return target if self.tags[TOOK + target] == 1 else None


class _Alike:
    """Values that are the same at every place of a layer's map: numbers, and one for each channel or example."""

    def __init__(self, start: Step, arguments: dict[int, tuple[int, ...]]):
        shape = _shapes(start.equation.outvars)[0]
        self.rank, self.spatial = len(shape), range(1, len(shape) - 1)
        self.varying = {number for number, shape in arguments.items() if self._may_vary(shape)}

    def holds(self, value: int) -> bool:
        return value not in self.varying

    def note(self, step: Step) -> None:
        """Learns of the results of a step that takes nothing of the layer's output."""
        for result, shape in zip(step.results, _shapes(step.equation.outvars), strict=True):
            if not self._may_vary(shape):
                continue
            if step.name == "broadcast_in_dim" and not self._spreads(step.equation):
                continue
            if step.name in _POINTWISE and all(map(self.holds, step.operands)):
                continue
            self.varying.add(result)

    def _may_vary(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == self.rank and any(shape[axis] > 1 for axis in self.spatial)

    def _spreads(self, equation: JaxprEqn) -> bool:
        """Whether a broadcast takes over values that differ from place to place."""
        shape, axes = _shapes(equation.invars)[0], equation.params["broadcast_dimensions"]
        return any(axis in self.spatial and size > 1 for axis, size in zip(axes, shape, strict=False))


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [getattr(v.aval, "shape", ()) for v in variables]
