"""Moves the bodies of ``tfl.while`` loops into functions of their own, which is how a TFLite file holds them.

LiteRT's converter has a pass for that and does not offer it to Python; without it, a module with loops cannot be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toolkit.convert import stablehlo

# Made again inside instead of being passed through the loop, where kernels need constants.
_CONSTANTS = ("arith.constant", "tfl.pseudo_const", "tfl.no_value")


def outline(module: Any) -> int:
    """Gives every loop of a converted module functions for its condition and its body; returns the number of loops."""
    from litert_converter.mlir import ir

    # A walk meets inner loops first, whose operands an outer loop may still have to pass through.
    loops = stablehlo.operations(module, "tfl.while")
    for number, loop in enumerate(loops):
        with ir.Location.unknown():
            _outline(module, loop, f"while_{number}")
    return len(loops)


def _outline(module: Any, loop: Any, name: str) -> None:
    from litert_converter.mlir import ir

    captured: list[Any] = []
    for region in loop.regions:
        _capture(region, captured)
    operands = [*loop.operands, *captured]
    types = [value.type for value in operands]
    for region, part in zip(loop.regions, ("cond", "body"), strict=True):
        _replace_captured(region.blocks[0], captured, returned=part == "body")
        _move_out(module, region, types, f"{name}_{part}")
    if captured:
        with ir.InsertionPoint(loop):
            wider = ir.Operation.create("tfl.while", results=types, operands=operands, attributes={"is_stateless": ir.BoolAttr.get(False)}, regions=2)
        for old, new in zip(loop.regions, wider.regions, strict=True):
            old.blocks[0].append_to(new)
        for place, result in enumerate(list(loop.results)):
            result.replace_all_uses_with(wider.results[place])
        loop.erase()


def _inside(region: Any) -> Iterator[Any]:
    for block in region.blocks:
        for found in block.operations:
            operation = found.operation
            yield operation
            for inner in operation.regions:
                yield from _inside(inner)


def _values(region: Any) -> set[Any]:
    """Returns what a region defines itself: its arguments and results, those of inner regions included."""
    found = {argument for block in region.blocks for argument in block.arguments}
    for operation in _inside(region):
        found.update(operation.results)
        found.update(argument for inner in operation.regions for block in inner.blocks for argument in block.arguments)
    return found


def _capture(region: Any, captured: list[Any]) -> None:
    """Notes the outer values that a region uses; constants are copied into it instead."""
    from litert_converter.mlir import ir

    own = _values(region)
    copies: dict[Any, Any] = {}
    for operation in list(_inside(region)):
        for place, value in enumerate(list(operation.operands)):
            if value in own:
                continue
            owner = getattr(value.owner, "operation", value.owner)
            if not isinstance(owner, ir.Block) and owner.name in _CONSTANTS:
                if value not in copies:
                    with ir.InsertionPoint.at_block_begin(region.blocks[0]):
                        copies[value] = owner.clone().operation.results[0]
                operation.operands[place] = copies[value]
            elif value not in captured:
                captured.append(value)


def _replace_captured(block: Any, captured: list[Any], *, returned: bool) -> None:
    """Passes captured values in as arguments; a loop's body also gives them back, for its next turn."""
    from litert_converter.mlir import ir

    arguments = [block.add_argument(value.type, ir.Location.unknown()) for value in captured]
    inner = dict(zip(captured, arguments, strict=True))
    for operation in [operation for operation in _inside(block.region) if inner]:
        for place, value in enumerate(list(operation.operands)):
            if value in inner:
                operation.operands[place] = inner[value]
    end = list(block.operations)[-1].operation
    values = [*end.operands, *(arguments if returned else [])]
    end.erase()
    with ir.InsertionPoint(block):
        ir.Operation.create("func.return", operands=values)


def _move_out(module: Any, region: Any, types: list[Any], name: str) -> None:
    """Turns a region's block into a private function, and calls it from the region."""
    from litert_converter.mlir import ir

    block = region.blocks[0]
    kind = ir.FunctionType.get(types, [value.type for value in list(block.operations)[-1].operation.operands])
    attributes = {"sym_name": ir.StringAttr.get(name), "function_type": ir.TypeAttr.get(kind), "sym_visibility": ir.StringAttr.get("private")}
    with ir.InsertionPoint(module.body):
        function = ir.Operation.create("func.func", attributes=attributes, regions=1)
    block.append_to(function.regions[0])
    caller = ir.Block.create_at_start(region, types, [ir.Location.unknown()] * len(types))
    with ir.InsertionPoint(caller):
        callee = {"callee": ir.FlatSymbolRefAttr.get(name)}
        call = ir.Operation.create("func.call", results=list(kind.results), operands=list(caller.arguments), attributes=callee)
        ir.Operation.create("tfl.yield", operands=list(call.results))
