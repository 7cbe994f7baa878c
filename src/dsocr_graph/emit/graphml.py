"""The call graph as GraphML: modules with their cost, operators by category, and the tensors between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from attrs import frozen

from dsocr_graph.emit.graph_figures import Figures, Value, percent
from modelmeter.binding import Binding
from modelmeter.categories import Category
from modelmeter.dim_text import to_text
from modelmeter.model import AnalyticModel, ModuleNode
from modelmeter.reports import Report

ROOT = "(root)"
"""Id of the root's node: readers refuse an empty one, and no module path has brackets like these."""

_LONG = 2**63
_HEAD = """\
<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xmlns:y="http://www.yworks.com/xml/graphml" xsi:schemaLocation="http://graphml.graphdrawing.org/xmlns \
http://graphml.graphdrawing.org/xmlns/1.0/graphml.xsd">"""
# yEd draws from elements of its own. Gephi takes the ids "nodelabel" and "edgelabel" for labels, so it reads the text
# inside these elements as what it is, where any other id without a type would be an error to it.
_YED = (
    '  <key id="nodelabel" for="node" yfiles.type="nodegraphics"/>',
    '  <key id="edgelabel" for="edge" yfiles.type="edgegraphics"/>',
)
_STAGE_COLORS = ("#1f77b4", "#2ca02c", "#9467bd", "#d62728", "#17becf", "#8c564b")
_ROW = 34.0  # pixels from row to row
_GAP = 60.0  # pixels between the widest box of one depth and the next depth


@frozen(kw_only=True)
class _Node:
    """One node to be written: a module, or a category of the operators that a module runs itself."""

    id: str
    parent: str | None
    attributes: dict[str, Value]


def to_graphml(model: AnalyticModel, report: Report | None = None) -> str:
    """Return the folded call graph of a model as GraphML.

    Nodes are modules (`kind` "module") and, under a module that has children, the operators it runs itself, one
    node per category (`kind` "category"). Edges lead from parent to child ("contains") and, per stage, from the
    module that writes tensors to the one that reads them ("data"). With a report, figures are those of its whole
    workload: `flops_*` in FLOPs, `bytes_*` and `fused_bytes_*` in bytes, `seconds_*` where a device is given, and
    `seconds_p10_*`, `seconds_p90_*` and `bound_by_*` where times are predicted with an interval, each for the node
    itself (`_self`) and with everything below it (`_inclusive`); `share_*` of the whole run, 0 to 1.
    `flops_per_run_STAGE` is the inclusive FLOPs of one run of a stage, as an expression in the dims.

    yEd shows labels, colours (the larger share of FLOPs or bytes) and a tree layout through its own elements; Gephi
    reads `label`, `x`, `y`, `color` and `weight`; networkx reads every attribute with its type. The weight of an edge
    is 1 where it contains, else its bytes relative to the heaviest data edge. Gephi merges parallel edges unless its
    import dialog says otherwise.

    Parameters
    ----------
    model : AnalyticModel
        The compiled model.
    report : Report or None
        The model at a workload; without one, only what holds for every workload is written.

    Returns
    -------
    str
        A document of XML; equal arguments give equal text.

    Raises
    ------
    ValueError
        When the report is about another model.

    Examples
    --------
    >>> from modelmeter.model import AnalyticModel, ModuleNode
    >>> node = ModuleNode(
    ...     id="", class_name="Linear", parent=None, instances=1, series=1, parallel={}, calls={},
    ...     parameters=10, parameter_bytes=20, fan_in=0, fan_out=0,
    ... )
    >>> model = AnalyticModel(
    ...     name="toy", variant={}, dims={}, parameters=10, parameter_bytes=20, load_bytes=40, stages=(),
    ...     modules=(node,), leaves=(), free=(), edges=(),
    ... )
    >>> '<node id="(root)">' in to_graphml(model)
    True
    """
    if report is not None:
        strangers = report.total.modules.keys() - model.parents.keys()
        if strangers or report.model.name != model.name:
            raise ValueError(
                f"the report is about {report.model.name}, not about {model.name}: it has modules "
                f"{sorted(strangers)[:3]} that the model has not; evaluate the model anew"
            )
    nodes = _placed([*_nodes(model, report)])
    edges = [*_contains(nodes), *_data(model, report)]
    about = f"{model.name}" if report is None else f"{model.name} at workload {report.workload}"
    lines = [
        _HEAD,
        *_keys("node", [node.attributes for node in nodes]),
        *_keys("edge", [edge for _, _, _, edge in edges]),
        *_YED,
        '  <graph id="G" edgedefault="directed">',
        f"    <desc>Call graph of {escape(about)}</desc>",
        *(line for node in nodes for line in _node_lines(node)),
        *(line for edge in edges for line in _edge_lines(*edge, stages=[stage.name for stage in model.stages])),
        "  </graph>",
        "</graphml>",
        "",
    ]
    return "\n".join(lines)


# --- nodes ----------------------------------------------------------------------------------------------------


def _nodes(model: AnalyticModel, report: Report | None) -> Iterator[_Node]:
    """Yield every module, and after each the categories it runs itself if it has children."""
    figures = Figures(model, report)
    composite = {node.parent for node in model.modules}
    depth: dict[str | None, int] = {None: -1}
    for node in model.modules:
        depth[node.id] = depth[node.parent] + 1
        yield _module(node, depth[node.id], figures)
        if node.id not in composite:
            continue
        for category in figures.own_categories(node.id):
            yield _category(node, category, depth[node.id] + 1, figures)


def _module(node: ModuleNode, depth: int, figures: Figures) -> _Node:
    loop = [f"for {node.series}"] if node.series > 1 else []
    loop += [f"parfor {count} in {stage}" for stage, count in sorted(node.parallel.items()) if count > 1]
    tail = node.id[len(node.parent) + 1 :] if node.parent else node.id
    name = f"{tail}: {node.class_name}" if tail else node.class_name
    amounts = figures.module(node.id)
    return _Node(
        id=node.id or ROOT,
        parent=None if node.parent is None else node.parent or ROOT,
        attributes={
            "label": ", ".join([name, *loop, *_share_texts(amounts)]),
            "kind": "module",
            "module": node.id or ROOT,
            "class": node.class_name,
            "category": "",
            "depth": depth,
            "instances": node.instances,
            "loop": ", ".join(loop),
            **{f"calls_{stage}": node.calls.get(stage, 0) for stage in figures.stages},
            "parameters_self": node.parameters,
            "parameters_inclusive": figures.parameters[node.id],
            "fan_in": node.fan_in,
            "fan_out": node.fan_out,
            **{f"flops_per_run_{stage}": figures.flops_text(node.id, stage) for stage in figures.stages},
            **amounts,
        },
    )


def _category(node: ModuleNode, category: Category, depth: int, figures: Figures) -> _Node:
    amounts = figures.category(node.id, category)
    return _Node(
        id=f"{node.id or ROOT}#{category.value}",
        parent=node.id or ROOT,
        attributes={
            "label": ", ".join([category.value, *_share_texts(amounts)]),
            "kind": "category",
            "module": node.id or ROOT,
            "class": node.class_name,
            "category": category.value,
            "depth": depth,
            "instances": node.instances,
            "loop": "",
            **{f"calls_{stage}": figures.calls(node.id, category, stage) for stage in figures.stages},
            "parameters_self": 0,
            "parameters_inclusive": 0,
            "fan_in": 0,
            "fan_out": 0,
            **{f"flops_per_run_{stage}": figures.own_flops_text(node.id, category, stage) for stage in figures.stages},
            **amounts,
        },
    )


def _share_texts(amounts: Mapping[str, Value]) -> list[str]:
    """Return what a label says of shares; nothing without a report, and so much for what never ran."""
    if not amounts:
        return []
    if not amounts["ran"]:
        return ["not called"]
    return [f"{percent(float(amounts[f'share_{name}']))} of {label}" for name, label in _SHARES]


_SHARES = (("flops", "FLOPs"), ("bytes", "bytes"))


# --- layout ---------------------------------------------------------------------------------------------------


def _placed(nodes: list[_Node]) -> list[_Node]:
    """Add a place and a colour to each node: a column per depth, parents beside the middle of their children."""
    children: dict[str, list[str]] = {}
    for node in nodes:
        if node.parent is not None:
            children.setdefault(node.parent, []).append(node.id)
    column = max(_width(node) for node in nodes) + _GAP
    rows: dict[str, float] = {}
    free = 0
    stack = [(nodes[0].id, False)]
    while stack:
        identifier, done = stack.pop()
        below = children.get(identifier, [])
        if done:
            rows[identifier] = (rows[below[0]] + rows[below[-1]]) / 2
        elif below:
            stack.append((identifier, True))
            stack.extend((child, False) for child in reversed(below))
        else:
            rows[identifier] = float(free)
            free += 1
    return [
        _Node(
            id=node.id,
            parent=node.parent,
            attributes={
                **node.attributes,
                "x": int(node.attributes["depth"]) * column,
                "y": -rows[node.id] * _ROW,  # Gephi's and networkx's y grows upwards, yEd's downwards
                "color": _color(node.attributes),
            },
        )
        for node in nodes
    ]


def _width(node: _Node) -> float:
    return 7.0 * len(str(node.attributes["label"])) + 16.0  # pixels; yEd's default font is about 7 wide


def _color(attributes: Mapping[str, Value]) -> str:
    """Return white to orange by the larger share of FLOPs or bytes; grey for what never ran."""
    if "ran" not in attributes:
        return "#ffffff"
    if not attributes["ran"]:
        return "#d9d9d9"
    heat = max(float(attributes["share_flops"]), float(attributes["share_bytes"]))
    low, high = (255, 255, 255), (253, 141, 60)
    return "#" + "".join(f"{round(a + (b - a) * min(heat, 1.0)):02x}" for a, b in zip(low, high, strict=True))


# --- edges ----------------------------------------------------------------------------------------------------

_Edge = tuple[str, str, str, dict[str, Value]]  # id, source, target, attributes


def _contains(nodes: Iterable[_Node]) -> Iterator[_Edge]:
    for node in nodes:
        if node.parent is not None:
            attributes: dict[str, Value] = {"kind": "contains", "weight": 1.0}
            yield f"contains:{node.parent}->{node.id}", node.parent, node.id, attributes


def _data(model: AnalyticModel, report: Report | None) -> list[_Edge]:
    sums = None if report is None else _edge_bytes(model, report)
    largest = max(sums, default=0.0) if sums else 0.0
    edges: list[_Edge] = []
    for position, edge in enumerate(model.edges):
        source, target = edge.source or ROOT, edge.target or ROOT
        attributes: dict[str, Value] = {
            "kind": "data",
            "stage": edge.stage,
            "tensors": edge.tensors,
            "bytes_per_run": to_text(edge.bytes),
            "weight": sums[position] / largest if sums and largest else 1.0,
        }
        if sums is not None:
            attributes["bytes"] = sums[position]
        edges.append((f"{edge.stage}:{source}->{target}", source, target, attributes))
    return edges


def _edge_bytes(model: AnalyticModel, report: Report) -> list[float]:
    """Return the bytes of each edge over the whole workload."""
    runs: dict[str, list[Binding]] = {stage.name: [] for stage in model.stages}
    for item in report.items:
        for run in item.runs:
            runs[run.stage].append(Binding(bindings=run.bindings, count=run.count, sweep=run.sweep))
    return [float(sum(binding.sum(to_text(edge.bytes)) for binding in runs[edge.stage])) for edge in model.edges]


# --- XML ------------------------------------------------------------------------------------------------------

_FLOATS = frozenset({"x", "y", "weight"})  # Gephi keeps these as 32-bit floats


def _keys(kind: str, rows: Iterable[Mapping[str, Value]]) -> list[str]:
    """Return the declaration of each attribute, once, with the type that fits all its values."""
    columns: dict[str, list[Value]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return [
        f'  <key id="{kind[0]}_{name}" for="{kind}" attr.name={quoteattr(name)} attr.type="{_type(name, values)}"/>'
        for name, values in columns.items()
    ]


def _type(name: str, values: Iterable[Value]) -> str:
    values = list(values)
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    if all(isinstance(value, int) for value in values):
        # what 64 bits do not hold is written as a float
        return "long" if all(abs(int(value)) < _LONG for value in values) else "double"
    if all(isinstance(value, int | float) for value in values):
        return "float" if name in _FLOATS else "double"
    return "string"


def _data_lines(kind: str, attributes: Mapping[str, Value]) -> Iterator[str]:
    for name, value in attributes.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        yield f'      <data key="{kind[0]}_{name}">{escape(text)}</data>'


def _node_lines(node: _Node) -> Iterator[str]:
    """Yield a node, yEd's drawing first: readers that take places from it are set right by what follows."""
    attributes = node.attributes
    label = str(attributes["label"])
    border = "dashed" if attributes["kind"] == "category" else "line"
    yield f"    <node id={quoteattr(node.id)}>"
    yield (
        '      <data key="nodelabel"><y:ShapeNode>'
        f'<y:Geometry x="{attributes["x"]}" y="{-float(attributes["y"])}" width="{_width(node)}" height="26.0"/>'
        f'<y:Fill color="{attributes["color"]}" transparent="false"/>'
        f'<y:BorderStyle color="#000000" type="{border}" width="1.0"/>'
        f"<y:NodeLabel>{escape(label)}</y:NodeLabel>"
        '<y:Shape type="roundrectangle"/></y:ShapeNode></data>'
    )
    yield from _data_lines("node", attributes)
    yield "    </node>"


def _edge_lines(
    identifier: str, source: str, target: str, attributes: Mapping[str, Value], *, stages: list[str]
) -> Iterator[str]:
    yield f"    <edge id={quoteattr(identifier)} source={quoteattr(source)} target={quoteattr(target)}>"
    color, style, width = "#000000", "line", 1.0
    if attributes["kind"] == "data":
        color = _STAGE_COLORS[stages.index(str(attributes["stage"])) % len(_STAGE_COLORS)]
        style, width = "dashed", 1.0 + 3.0 * float(attributes["weight"])
    yield (
        '      <data key="edgelabel"><y:PolyLineEdge>'
        f'<y:LineStyle color="{color}" type="{style}" width="{width:.2f}"/>'
        '<y:Arrows source="none" target="standard"/></y:PolyLineEdge></data>'
    )
    yield from _data_lines("edge", attributes)
    yield "    </edge>"
