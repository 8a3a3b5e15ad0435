"""Where a network's channels can be rescaled without changing what it computes, found in its flow.

What lies between a producer and its consumers must let factors through, and nobody else may read the channels. Norms
are producers where their weight multiplies what comes out; Gemma's, which is 1 + weight, is none. Where it is not
plain which channel is which, powers of two are tried as factors: they change no bit of the outputs, or it was wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from qlearn.nn.batches import Batches, Forward, listed
from qlearn.nn.flow import FLATTENS, KEEPS, MAPS, MIXES, MOVES, POOLS, TIMES, UNKNOWN, Flow, Step, say_left
from qlearn.nn.linear_maps import LinearMap, is_linear_map
from qlearn.nn.network import check_numbers, check_seed, copy_with, linear_maps, sharing
from qlearn.nn.recording import refuse_unless_float, watched
from qlearn.nn.site import Site, rescale
from qlearn.nn.unchanged import distance, failing, outputs_in_float, wanted_outputs

# Where the channels are: a number is how many axes are behind theirs.
LAST, BLOCKS, MOVED = 0, "blocks of columns", "somewhere else"
SAME = 1e-5  # of the largest output: powers of two change no bit, but for kernels that sum up in another order


def sites(model: nn.Module, batches: Batches | None = None, *, forward: Forward | None = None) -> list[Site]:
    """The places where a network can be rescaled, in the order of its calls.

        norm → linear maps      linear map → linear maps, with ReLU, pooling, Flatten and the like between
        value → output of an attention      up → down of a gated MLP

    Nothing else may read the channels, no layer may be used or stored twice. With batches, the network is watched on
    the first one: that finds the places in any code. Without, they are those that can be read off the code.

    Args:
        model: a float network. It is not changed.
        batches, forward: as for `calibrate`; only the first batch is looked at.

    Raises:
        ValueError: no such place (says why), weights that a hook computes, a model that is prepared or quantized.

    Cost: without batches, that of `tracing.trace`; with them, two passes of one batch, more where something is wrong.

    >>> from qlearn.nn.language_model import language_model
    >>> [site.name for site in sites(language_model())][:2]
    ['blocks.0.norm1', 'blocks.0.attention.value']
    """
    return _found(model, None if batches is None else next(iter(listed(batches))), forward)[1]


def plant_outliers(
    model: nn.Module,
    *,
    channels: int = 2,
    factor: float = 64.0,
    seed: int = 0,
    batches: Batches | None = None,
    forward: Forward | None = None,
    sites: Sequence[Site] | None = None,
) -> nn.Module:
    """Copy a transformer and make some channels of its activations large, without changing what it computes.

    Large language models come out of training like this: a few channels behind a norm are tens of times as large as
    all others, in nearly every text. Small ones do not; this one is made for trying out what helps.

    Args:
        model: a float network with norms that linear maps read. It is not changed.
        channels: how many, behind each norm.
        factor: how much larger. A power of two changes no bit of what the model computes in between.
        seed: which channels.
        batches, forward, sites: as for `smooth`; not needed where the places can be read off the code.

    Raises:
        ValueError: more channels than there are, or fewer than none; a factor that is not above 0; no such norms.

    >>> from qlearn.nn.language_model import language_model, to_tokens
    >>> model, x = language_model(), to_tokens("Call me Ishmael.")
    >>> bool(torch.allclose(plant_outliers(model)(x), model(x), atol=1e-5))
    True
    """
    check_seed(seed)
    check_numbers(channels=channels, factor=factor)
    planted, found, _ = copied(model, batches, forward, sites)
    random, factors = torch.Generator().manual_seed(seed), {}
    for site in found:
        if is_linear_map(site.producer):
            continue
        if not 0 <= channels <= site.channels or not 0 < factor < float("inf"):
            raise ValueError(
                f"channels={channels}, factor={factor}: there are {site.channels} channels, and a factor is above 0."
            )
        s = factors[site] = torch.ones(site.channels)
        s[torch.randperm(site.channels, generator=random)[:channels]] = 1 / factor
    if not factors:
        raise ValueError(f"{type(model).__name__} has no norm that only linear maps read.")
    rescale(planted, factors)
    return planted


def copied(
    model: nn.Module, batches: Batches | None, forward: Forward | None, given: Sequence[Site] | None, done: str = ""
) -> tuple[nn.Module, list[Site], Iterable[Any]]:
    """What all that rescales begins with: a copy of the model, the sites in it, and the batches.

    Args:
        model, batches, forward: as for `sites`.
        given: sites of the model that are already known.
        done: what is done with them: "smoothed". Then layers that no site reaches are named in a warning.
    """
    rest = iter(() if batches is None else listed(batches))
    first = None if batches is None else next(rest)
    if given is None:
        flow, found, why = _found(model, first, forward)
        if done:
            left = _not_reached(model, flow, found, why)
            count = len({layer for site in found for layer in site.consumers})
            say_left(f"{done} the inputs of {count} of {count + len(left)} layers", left)
    else:
        found = _checked(model, given)
    twin, found = copy_with(model, found)
    return twin, found, chain([first], rest)


def find_sites(
    model: nn.Module, flow: Flow, batch: Any = None, forward: Forward | None = None
) -> tuple[list[Site], dict[str, str]]:
    """The sites in a flow, and for each other norm and linear map why there is none behind it."""
    found: list[Site] = []
    unsure: list[Site] = []
    why: dict[str, str] = {}
    for step in flow.steps:
        if step.module is None or not (step.does == MAPS or is_norm(step.module)):
            continue
        try:
            site, sure = _site(flow, step)
            found.append(site)
            unsure += [] if sure and batch is None else [site]
        except _NoSite as reason:
            why[step.name] = str(reason)
    if batch is None:
        wrong = [site for site in unsure if not _holds_on_noise(model, flow, site)]
    else:
        wanted = wanted_outputs(model, batch, forward)
        wrong = failing(unsure, lambda some: _stays(model, some, wanted, batch, forward))
    why.update({site.name: "the network computes something else when it is rescaled" for site in wrong})
    return [site for site in found if site not in wrong], why


def _found(model: nn.Module, batch: Any, forward: Forward | None) -> tuple[Flow, list[Site], dict[str, str]]:
    """A network's flow and what `find_sites` finds in it, one site at least."""
    flow = watched(model, batch, forward)
    found, why = find_sites(model, flow, batch, forward)
    if not found:
        reasons = "; ".join(f"behind {name!r}, {reason}" for name, reason in list(why.items())[:5])
        reasons = reasons or "nothing could be followed"
        raise ValueError(f"{type(model).__name__} has no place that could be rescaled ({reasons}).")
    return flow, found, why


class _NoSite(Exception):
    """Why there is none."""


def _site(flow: Flow, start: Step) -> tuple[Site, bool]:
    """The site behind a step, and whether it is certain which channel is which."""
    producer = start.module
    assert producer is not None
    if reason := flow.why_not(producer):
        raise _NoSite(reason)
    linear = is_linear_map(producer)
    layouts: dict[Step, Any] = {start: -1 - LinearMap.of(producer).output_axis if linear else LAST}
    consumers: dict[nn.Module, Any] = {}
    width = 0  # of a head
    steps = [start]
    for at in steps:  # grows
        for reader in dict.fromkeys(at.readers):
            if reader.does == MAPS:
                if reason := flow.why_not(reader.module):
                    raise _NoSite(f"{reader.name!r} reads it, and {reason}")
                consumers[reader.module] = layouts[at]
                continue
            if reader.does == MIXES and width == 0 and at.shape:
                width = at.shape[-1]
            if reader not in layouts:
                layouts[reader] = _behind(reader, at, layouts[at])
                steps.append(reader)
    for step in steps[1:]:
        if sum(source in layouts for source in step.reads) > 1:
            raise _NoSite(f"{step.name!r} reads it twice")
    if not consumers:
        raise _NoSite("no linear map reads it")
    site = Site(flow.names[producer], producer, tuple(consumers))
    reads = [_columns(flow, site, layer, layout, width) for layer, layout in consumers.items()]
    if any(columns is not None for columns in reads):
        if len(reads) > 1:
            raise _NoSite("several layers read it in different orders")
        site = Site(site.name, producer, site.consumers, reads[0])
    _nobody_else(flow, site)
    return site, MOVED not in consumers.values()


def _behind(step: Step, source: Step, layout: Any) -> Any:
    """Where the channels are behind a step."""
    alone = len(step.reads) == 1
    if (step.does == KEEPS and alone) or step.does == TIMES or step.does == f"{POOLS}{layout}":
        return layout
    if step.does == FLATTENS:
        return BLOCKS if layout in (1, 2) else layout
    if (step.does == MOVES and alone) or (step.does == MIXES and step.reads.index(source) == step.values_place):
        return MOVED
    raise _NoSite(f"{step.name!r} reads it")


def _columns(flow: Flow, site: Site, layer: nn.Module, layout: Any, width: int) -> Tensor | None:
    """The `reads` of a site with this consumer, if they are not blocks of neighbours."""
    axes, inputs, channels = len(layer.weight.shape) - 2, LinearMap.of(layer).inputs, site.channels
    grouped = layout == MOVED and inputs != channels
    if layout in (BLOCKS, MOVED):
        fits = axes == 0 and inputs % channels == 0 and not (grouped and (width == 0 or channels % width))
    else:
        fits = axes == layout and inputs == channels
    if not fits:
        raise _NoSite(f"{flow.names[layer]!r} reads it in another order")
    if not grouped:
        return None
    # Grouped queries: several heads in a row read the same head of values.
    heads = torch.arange(channels).reshape(-1, 1, width)
    return heads.expand(-1, inputs // channels, -1).flatten()


def _nobody_else(flow: Flow, site: Site) -> None:
    """Refuse a site beside which there are layers that a batch has not reached: with another one, they may read it."""
    around = _around(flow, site)
    for module, name in flow.names.items() if around and flow.way == "recorded" else ():
        if is_linear_map(module) and name.startswith(around + ".") and not flow.calls[module]:
            raise _NoSite(f"{name!r}, which the first batch does not reach, may read it, too")


def _around(flow: Flow, site: Site) -> str:
    """The name of the smallest module that holds all of a site's."""
    levels = zip(*(flow.names[layer].split(".")[:-1] for layer in (site.producer, *site.consumers)), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _stays(
    model: nn.Module, sites: Sequence[Site], wanted: Iterable[Tensor], batch: Any, forward: Forward | None
) -> bool:
    """Whether the outputs for a batch stay the same when these sites are rescaled by powers of two."""
    twin, rescaled = copy.deepcopy((model, sites))
    random = torch.Generator().manual_seed(0)
    for site in rescaled:
        site.rescale(2.0 ** torch.randint(-3, 4, (site.channels,), generator=random))
    return distance(wanted, outputs_in_float(twin, batch, forward)) <= SAME


def _holds_on_noise(model: nn.Module, flow: Flow, site: Site) -> bool:
    """Whether the smallest module around a site, if it takes (N, T, I), puts out the same when it is rescaled."""
    around = model.get_submodule(_around(flow, site))
    weight = site.producer.weight
    x = torch.randn(2, 5, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        return _stays(around, [site], outputs_in_float(around, x, None), x, None)
    except Exception:  # whatever a module may raise that takes something else
        return False


def is_norm(module: nn.Module) -> bool:
    """Whether a module has a weight for each channel (and a bias) and its output scales with them: tried on numbers."""
    own = dict(module.named_parameters())
    weight = own.get("weight")
    if weight is None or weight.ndim != 1 or not set(own) <= {"weight", "bias"}:
        return False
    s = 2.0 ** (torch.arange(len(weight)) % 5)
    x = torch.sin(torch.arange(6.0 * len(weight))).reshape(2, 3, -1).to(weight.device)
    numbers = torch.cos(torch.arange(len(weight)))
    before, after = (given_by(module, x, dict.fromkeys(own, value)) for value in (numbers, numbers / s))
    return before is not None and after is not None and torch.equal(after * s.to(after), before)


def given_by(module: nn.Module, x: Tensor, numbers: Mapping[str, Tensor]) -> Tensor | None:
    """What a copy of a module in float32, with these parameters, makes of x in eval mode; None if it cannot take it."""
    twin = copy.deepcopy(module).float().eval()  # the smallest numbers of float16 lose bits when they are divided
    with torch.no_grad():
        try:
            for name, parameter in twin.named_parameters():
                parameter.copy_(numbers[name])
            y = twin.forward(x)
        except Exception:  # whatever a module may raise that takes something else
            return None
    return y if isinstance(y, Tensor) and y.shape == x.shape else None


def _not_reached(model: nn.Module, flow: Flow, found: Sequence[Site], why: Mapping[str, str]) -> dict[str, str]:
    """The linear maps that no site ends in, and why; those that read the network's input need no words."""
    taken = {layer for site in found for layer in site.consumers}
    steps = {step.module: step for step in flow.steps if step.module is not None}
    left = {}
    for name, layer in linear_maps(model).items():
        if layer in taken:
            continue
        if layer not in steps:
            left[name] = "nobody sees who calls it"
            continue
        source = steps[layer]
        while source.reads and (source is steps[layer] or source.does not in (MAPS, UNKNOWN)):
            source = source.reads[-1]
        if source.module is not None or source.reads or flow.way == "traced in parts":
            left[name] = f"it reads {source.name!r}" + (f": {why[source.name]}" if source.name in why else "")
    return left


def _checked(model: nn.Module, given: Sequence[Site]) -> list[Site]:
    """Sites that somebody has handed over, if they can be rescaled."""
    refuse_unless_float(model)
    if not isinstance(given, Sequence) or not all(isinstance(site, Site) for site in given):
        raise TypeError("sites must be a list of rescaling.Site, as rescaling.sites(model, batches) finds them.")
    names, shared = {module: name for name, module in model.named_modules()}, sharing(model)
    read: set[nn.Module] = set()
    for site in given:
        where = f"site {site.name!r}:"
        for layer in (site.producer, *site.consumers):
            if layer not in names:
                raise ValueError(f"{where} its {type(layer).__name__} is no module of this model.")
            if layer in shared:
                raise ValueError(f"{where} {names[layer]!r} shares its numbers with {shared[layer][0]!r}.")
        for layer in site.consumers:
            if not is_linear_map(layer) or (site.reads is None and LinearMap.of(layer).inputs % site.channels):
                raise ValueError(f"{where} {names[layer]!r} is no linear map of {site.channels} channels.")
            if layer in read:
                raise ValueError(f"{where} another site has {names[layer]!r} as a consumer already.")
            read.add(layer)
        if not is_linear_map(site.producer) and not is_norm(site.producer):
            raise ValueError(f"{where} the output of {names[site.producer]!r} does not scale with its weight.")
    return list(given)
