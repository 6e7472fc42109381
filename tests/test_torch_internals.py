"""Each private part of torch that hushgrad relies on still means what it is taken for, and is named in one file."""

from __future__ import annotations

import ast
import gc
import importlib
import inspect
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import hushgrad
from hushgrad import torch_internals as insides

ROOT = Path(hushgrad.__file__).parent
OTHERS = {"sys", "os"}
"""Modules of Python whose functions with a leading underscore are documented."""


# One file ------------------------------------------------------------------------------------------------------------


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_of_torch() -> set[str]:
    """The private attributes of torch's objects that this package handles."""
    x = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([x])
    objects = [
        x,
        nn.Linear(1, 1),
        x.untyped_storage(),
        optimizer,
        x.sum().grad_fn,
        torch.addmm(x, torch.ones(1, 1), torch.ones(1, 2)).grad_fn,
        torch.ops.aten.mul.Tensor,
        torch.autograd.Function,
        torch.autograd.forward_ad,
        torch.overrides,
        torch.nn.modules.batchnorm,
    ]
    return {name for found in objects for name in (*dir(found), *vars(type(found))) if private(name)}


def violations(source: str, of_torch: set[str]) -> Iterator[str]:
    """Yield the places in a source that name a private part of torch."""

    def is_of_torch(name: str) -> bool:
        return name in of_torch or (name.startswith("_saved_") and name.isidentifier())

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            is_own = owner in {"self", "cls", "super()", *OTHERS}
            if owner.split(".")[0] == "torch" or (not is_own and is_of_torch(node.attr)):
                yield f"line {node.lineno}: {owner}.{node.attr}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                parts = [*module.split("."), *alias.name.split(".")]
                if "torch" in parts[:2] and any(private(part) for part in parts):
                    yield f"line {node.lineno}: import of {'.'.join(parts)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and is_of_torch(node.value):
            yield f"line {node.lineno}: {node.value!r}"


def test_no_other_file_names_a_private_part_of_torch() -> None:
    of_torch = names_of_torch()
    assert {"_version", "_base", "_buffers", "_forward_hooks", "_cdata", "_schema", "_sequence_nr"} <= of_torch
    found = [
        f"{path.relative_to(ROOT)} {place}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.name not in ("torch_internals.py", "torch_sharding.py")
        for place in violations(path.read_text(encoding="utf-8"), of_torch)
    ]
    assert not found, "these belong into torch_internals.py, each with its reason"


@pytest.mark.parametrize(
    "line",
    [
        "torch._C._current_graph_task_id()",
        "from torch.utils import _pytree",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "import torch._utils",
        "tensor._version",
        "node._saved_exponent",
        "found[0].grad_fn._sequence_nr()",
        "getattr(module, '_forward_hooks')",
    ],
)
def test_the_walk_sees_each_way_to_name_one(line: str) -> None:
    assert list(violations(line, names_of_torch()))


def test_every_entry_says_what_it_is_for() -> None:
    tree = ast.parse(inspect.getsource(insides))
    for place, node in enumerate(tree.body):
        if isinstance(node, (ast.AnnAssign, ast.Assign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            following = tree.body[place + 1 : place + 3]  # two that belong together may share one
            is_said = any(isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) for after in following)
            assert is_said or ast.unparse(target) in ("__all__", "_hooks_of_module")
        elif isinstance(node, ast.FunctionDef):
            assert ast.get_docstring(node)


# Tensors and their memory --------------------------------------------------------------------------------------------


def test_a_change_in_place_raises_the_version_and_a_write_to_the_data_does_not() -> None:
    x = torch.zeros(3)
    before = insides.version(x)
    x.add_(1)
    assert insides.version(x) == before + 1
    x[0] = 2
    assert insides.version(x) == before + 2
    x.data.add_(1)
    assert insides.version(x) == before + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_what_has_no_version_is_told_by_its_values(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        few, many = torch.zeros(2, 3, dtype=dtype), torch.zeros(insides.MOST_READ + 1, dtype=dtype)
        same = few.clone()
    assert insides.version(few) == insides.version(few) == insides.version(same)
    with torch.inference_mode():
        few[0, 0] = 1
    assert insides.version(few) != insides.version(same)
    assert insides.version(many) != insides.version(many)


def test_a_view_knows_its_base_and_an_ordinary_tensor_has_none() -> None:
    x = torch.zeros(2, 3)
    assert insides.base_of(x) is None
    assert not insides.is_view(x)
    assert insides.base_of(x.t()[0]) is x
    assert insides.is_view(x.t())


def test_the_use_count_of_memory_counts_the_tensors_that_hold_it() -> None:
    x = torch.zeros(3)
    storage = x.untyped_storage()
    handle = insides.storage_handle(storage)
    alone = insides.storage_use_count(handle)
    view = x.view(3, 1)
    assert insides.storage_use_count(handle) == alone + 1
    assert insides.storage_handle(view.untyped_storage()) == handle
    del view
    assert insides.storage_use_count(handle) == alone


def test_tensors_are_flattened_in_order_and_come_back_in_their_shapes() -> None:
    parts = [torch.arange(6.0).view(2, 3), torch.arange(2.0)]
    flat = insides.flattened(parts)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    again = insides.unflattened(flat, parts)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


# Modules -------------------------------------------------------------------------------------------------------------


def shared() -> nn.Module:
    part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(part, nn.ModuleDict({"again": part, "other": nn.LayerNorm(2)}))
    model.add_module("nothing", None)
    return model


@pytest.mark.parametrize("make", [shared, lambda: nn.Linear(2, 2), lambda: nn.TransformerEncoderLayer(4, 2, 8)])
def test_the_walk_finds_each_module_once(make: Any) -> None:
    model = make()
    found = insides.modules_of(model)
    assert len(found) == len({id(module) for module in found})
    assert {id(module) for module in found} == {id(module) for module in model.modules()}


def test_a_module_keeps_what_it_registers_where_we_look() -> None:
    module = nn.BatchNorm1d(2)
    module.register_module("inner", nn.ReLU())
    module.register_buffer("hidden", torch.zeros(1), persistent=False)
    assert dict(insides.parameters_of(module)) == dict(module.named_parameters(recurse=False))
    assert list(map(id, insides.own_parameters([module, nn.ReLU()]))) == list(map(id, module.parameters(recurse=False)))
    assert dict(insides.buffers_of(module)) == dict(module.named_buffers(recurse=False))
    assert dict(insides.children_of(module)) == dict(module.named_children())
    assert set(insides.CONTAINERS) | set(insides.REGISTERED) <= vars(module).keys()
    assert vars(module)[insides.REGISTERED[1]] == {"hidden"}
    insides.children_of(module)["inner"] = other = nn.Tanh()
    insides.buffers_of(module)["hidden"] = None
    assert module.inner is other
    assert module.hidden is None


def test_each_kind_of_hook_on_a_module_is_counted() -> None:
    module = nn.Linear(1, 1)
    assert insides.hook_counts([module, module]) == (0, 0)
    handles = [
        module.register_forward_hook(print),
        module.register_forward_pre_hook(print),
        module.register_full_backward_hook(print),
        module.register_full_backward_pre_hook(print),
    ]
    assert insides.hook_counts([module]) == (4,)
    assert list(insides.forward_pre_hooks_of(module).values()) == [print]
    for handle in handles:
        handle.remove()
    assert insides.hook_counts([module, module]) == (0, 0)


@pytest.mark.parametrize("register", [Tensor.register_hook, Tensor.register_post_accumulate_grad_hook])
def test_each_kind_of_hook_on_a_gradient_is_seen(register: Any) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    assert not insides.has_gradient_hooks(parameter)
    handle = register(parameter, print)
    assert insides.has_gradient_hooks(parameter)
    handle.remove()
    assert not insides.has_gradient_hooks(parameter)


def test_all_batch_and_instance_norms_have_the_common_base() -> None:
    for space in ("1d", "2d", "3d"):
        for lazy in ("", "Lazy"):
            assert issubclass(getattr(nn, f"{lazy}BatchNorm{space}"), insides.BatchNorm)
            assert issubclass(getattr(nn, f"{lazy}InstanceNorm{space}"), insides.InstanceNorm)
    assert issubclass(nn.SyncBatchNorm, insides.BatchNorm)
    assert not issubclass(nn.LayerNorm, (insides.BatchNorm, insides.InstanceNorm))
    for name in ("CrossEntropyLoss", "MSELoss", "BCEWithLogitsLoss", "CTCLoss", "TripletMarginLoss"):
        assert issubclass(getattr(nn, name), insides.Criterion)
    assert not issubclass(nn.Softmax, insides.Criterion)


def test_a_hook_runs_inside_frames_of_the_file_of_module_calls() -> None:
    files = []

    def look(module: nn.Module, args: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename == insides.MODULE_CALL_FILE:
            files.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        files.append(frame.f_code.co_filename)

    module = nn.ReLU()
    module.register_forward_pre_hook(look)
    module(torch.zeros(1))
    assert len(files) > 1
    assert files[-1] == __file__


def test_selective_checkpointing_is_seen_while_its_forward_runs_and_no_other() -> None:
    seen = []

    def run(x: Tensor) -> Tensor:
        seen.append(insides.keeps_some_values())
        return x.sin().exp().sin()

    keeps = partial(create_selective_checkpoint_contexts, [torch.ops.aten.sin.default])
    for options in ({}, {"context_fn": keeps}):
        checkpoint(run, torch.ones(2, requires_grad=True), use_reentrant=False, **options)
    assert seen == [False, True]
    total = checkpoint(run, torch.ones(2, requires_grad=True), use_reentrant=False, context_fn=keeps).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward an extra time"):
        total.backward()


# Frames of torch's own code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_what_dies_with_a_module_call_lives_as_long_as_the_call_and_no_longer(is_interrupted: bool) -> None:
    found: list[Any] = []

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert found[-1]() is not None
            if is_interrupted:
                raise KeyboardInterrupt
            return x

    module = Inner()
    module.register_forward_pre_hook(lambda module, args: found.append(insides.life_of_call(sys._getframe(1))))
    try:
        module(torch.zeros(1))
    except KeyboardInterrupt:
        assert is_interrupted
    assert len(found) == 1
    assert found[0]() is None
    assert insides.life_of_call(sys._getframe()) is None


def test_each_step_of_an_optimizer_has_a_witness_of_its_own() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    found: list[Any] = []

    def look(*_: Any) -> None:
        found.append(insides.witness_of_step(sys._getframe(1)))

    optimizer.register_step_pre_hook(look)
    optimizer.register_step_post_hook(look)
    optimizer.step()
    optimizer.step()
    assert all(isinstance(witness, str) for witness in found)
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert found[0] is not found[2]


def test_a_running_backward_shows_what_it_was_given() -> None:
    found = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2

    def look(gradient: Tensor) -> None:
        frame: Any = sys._getframe()
        while frame is not None:
            found.append(insides.losses_of_backward(frame))
            frame = frame.f_back

    y.register_hook(look)
    loss = y.sum()
    loss.backward(torch.tensor(2.0))
    ((tensors, gradients),) = [part for part in found if part is not None]
    assert tensors[0] is loss
    assert float(gradients) == 2


def test_an_opened_function_shows_its_parts_and_gives_the_same() -> None:
    layer, x = nn.MultiheadAttention(4, 2).eval(), torch.randn(3, 2, 4)
    run = torch.nn.functional.multi_head_attention_forward
    options = [4, 2, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0]
    options += [layer.out_proj.weight, layer.out_proj.bias]
    with Seen() as mode:
        whole = run(x, x, x, *options)
    assert mode.functions == [run]
    with Seen() as mode:
        parts = insides.opened(run)(x, x, x, *options)
    assert run not in mode.functions
    assert torch.nn.functional.linear in mode.functions
    torch.testing.assert_close(parts, whole)


def test_what_was_compiled_is_known_and_what_it_was_made_of() -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    compiled = torch.compile(double, backend="eager")
    assert insides.compiled_from(compiled) is double  # type: ignore[arg-type]
    assert insides.compiled_from(double) is None
    assert insides.is_compiled(torch.compile(nn.Linear(2, 2), backend="eager"))
    assert not insides.is_compiled(nn.Linear(2, 2))
    in_place = nn.Linear(2, 2)
    assert not insides.calls_compiled(in_place)
    in_place.compile(backend="eager")
    assert insides.calls_compiled(in_place)
    assert not insides.is_compiled(in_place)
    assert insides.calls_compiled(torch.compile(nn.Linear(2, 2), backend="eager"))


def test_what_stops_the_compiler_stops_it_until_its_call_ends_or_it_goes_on() -> None:
    torch._dynamo.reset()
    for key, who in list(insides.EagerCode._wanted.items()):  # loops of earlier tests that were left in an item
        insides.EagerCode._release(key, who)
    insides.order_modes([])
    seen: list[list[str]] = []
    by: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    def stop() -> None:
        by.append(insides.stop_compiling())

    def go_on() -> None:
        insides.go_on_compiling(by.pop())

    insides.never_compiled(stop)
    insides.never_compiled(go_on)

    def stopped(x: Tensor) -> Tensor:
        y = x + 1
        stop()
        return y * 2

    def stopped_and_gone_on(x: Tensor) -> Tensor:
        y = x - 1
        stop()
        y = y * 2
        go_on()
        return ends(y)

    def ends(y: Tensor) -> Tensor:
        return y.sin()

    x = torch.ones(3)
    assert insides.stop_compiling() is None
    for _ in range(2):
        assert torch.equal(torch.compile(stopped, backend=backend)(x), torch.full((3,), 4.0))
    assert by[0] is not None
    assert torch.equal(torch.compile(stopped_and_gone_on, backend=backend)(x), torch.zeros(3))
    assert seen == [["y"], ["y"], ["sin"]]  # what is before the stop, and what is called after going on


def test_hooks_that_only_look_are_told_from_others() -> None:
    x = torch.ones(2, requires_grad=True)
    kept: list[Any] = []

    class Look(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.register_hook:
                kept.append(args[1])
            return func(*args, **(kwargs or {}))

    with Look():
        torch.autograd.graph.register_multi_grad_hook([x], lambda gradients: None)
        x.register_hook(lambda gradient: None)
    assert [insides.only_looks(hook) for hook in kept] == [True, False]


# What shows itself to a mode -----------------------------------------------------------------------------------------


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_the_innermost_mode_is_the_top_one_and_unseen_calls_are_not_seen() -> None:
    assert insides.top_mode() is None
    with Seen() as outer:
        assert insides.top_mode() is outer
        with Seen() as inner:
            assert insides.top_mode() is inner
            with insides.unseen():
                torch.ones(1)
            torch.zeros(1)
            assert inner.functions == [torch.zeros]
    assert insides.top_mode() is None


def test_modes_are_put_in_another_order_and_none_is_left_or_entered() -> None:
    one = Seen()
    with Seen() as other:
        insides.order_modes([one, other])
        assert insides.function_modes() == [one, other]
        insides.order_modes([other, one])
        assert insides.top_mode() is one
        insides.order_modes([other])
    assert insides.function_modes() == []


def test_packing_and_cells_show_themselves_by_the_functions_that_rules_stand_at() -> None:
    x, lengths = torch.randn(3, 2, 4), [3, 1]
    with Seen() as mode:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
        nn.utils.rnn.pad_packed_sequence(packed)
        nn.utils.rnn.pad_sequence([x[0], x[1]])
        nn.LSTMCell(4, 5)(x[0])
        nn.GRU(4, 5)(x)
        nn.functional.grouped_mm(torch.ones(3, 4), torch.ones(2, 4, 4), offs=torch.tensor([1, 3], dtype=torch.int32))
    assert {
        insides.GROUPED_MM,
        insides.PACK,
        insides.PAD_PACKED,
        insides.PAD_LIST,
        insides.VARIABLE_FUNCTIONS.lstm_cell,
        insides.VARIABLE_FUNCTIONS.gru,
    } <= set(mode.functions)


def test_the_number_of_values_of_a_sparse_tensor_shows_itself_to_a_mode() -> None:
    with Seen() as mode:
        assert torch.eye(4).to_sparse()._nnz() == 4
    assert insides.NUMBER_OF_VALUES in mode.functions


def test_a_transform_is_named_and_none_is_reported_outside() -> None:
    names: list[str | None] = []

    def look(x: Tensor) -> Tensor:
        names.append(insides.functorch_transform())
        return x.sum()

    assert insides.functorch_transform() is None
    torch.func.grad(look)(torch.ones(2))
    torch.func.vmap(look)(torch.ones(2, 1))
    assert names == ["grad", "vmap"]
    assert insides.functorch_transform() is None
    assert not insides.is_forward_differentiating()
    with forward_ad.dual_level():
        assert insides.is_forward_differentiating()


def test_a_schema_names_an_operator_and_its_arguments() -> None:
    found = []

    class Look(insides.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(insides.schema_of(func))
            return func(*args, **(kwargs or {}))

    with Look():
        torch.nn.functional.dropout(torch.ones(2), 0.5)
    names = [schema.name for schema in found]
    assert names
    assert all(name.startswith("aten::") for name in names)
    schema = insides.schema_of(torch.ops.aten.native_dropout.default)
    assert [(part.name, str(part.type)) for part in schema.arguments][:2] == [("input", "Tensor"), ("p", "float")]


def test_trees_come_back_as_they_were() -> None:
    tree = {"a": [1, (2, None)], "b": torch.ones(1)}
    flat, spec = insides.tree_flatten(tree)
    assert flat == insides.tree_leaves(tree)
    assert isinstance(spec, insides.TreeSpec)
    assert insides.tree_unflatten(flat, spec) == tree
    assert insides.tree_map(lambda value: value, tree) == tree


# The engine and its graph --------------------------------------------------------------------------------------------


def test_each_backward_has_a_task_of_its_own_and_there_is_none_outside() -> None:
    tasks = []
    x = torch.ones(2, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: tasks.append(insides.current_graph_task()))
    for _ in range(2):
        y.sum().backward(retain_graph=True)
    assert len(set(tasks)) == 2
    assert insides.NO_GRAPH_TASK not in tasks
    assert insides.current_graph_task() == insides.NO_GRAPH_TASK


@pytest.mark.parametrize("accumulates", [True, False])
def test_the_engine_says_whether_it_will_accumulate_into_a_leaf(accumulates: bool) -> None:
    leaf, data = torch.zeros((), requires_grad=True), torch.ones(2, requires_grad=True)
    node = torch.autograd.graph.get_gradient_edge(leaf).node
    y = data * 2 + leaf
    found = []
    y.register_hook(lambda gradient: found.append(insides.will_execute(node)))
    if accumulates:
        y.sum().backward()
    else:
        torch.autograd.grad(y.sum(), data)
    assert found == [accumulates]


def test_the_engine_calls_back_after_a_backward_and_not_after_one_that_raised() -> None:
    events: list[str] = []
    x = torch.ones(2, requires_grad=True)

    def hook(gradient: Tensor) -> None:
        insides.call_after_backward(lambda: events.append("after"))
        events.append("hook")
        if is_failing:
            raise ValueError("of a hook")

    y = x * 2
    y.register_hook(hook)
    is_failing = False
    y.sum().backward(retain_graph=True)
    assert events == ["hook", "after"]
    is_failing = True
    with pytest.raises(ValueError, match="of a hook"):
        y.sum().backward()
    assert events == ["hook", "after", "hook"]


def test_nodes_are_numbered_in_the_order_of_their_making_and_by_thread() -> None:
    x = torch.ones(2, requires_grad=True)
    first, second = x * 2, x * 3
    assert insides.sequence_number(first.grad_fn) < insides.sequence_number(second.grad_fn)
    found = []
    thread = threading.Thread(target=lambda: found.append(insides.sequence_number((x * 2).grad_fn)))
    thread.start()
    thread.join()
    assert found[0] <= insides.sequence_number(second.grad_fn)


def test_nodes_show_what_their_formulas_keep_by_the_names_that_the_loss_rules_use() -> None:
    x, classes = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    functional = torch.nn.functional
    wanted: list[tuple[Tensor, dict[str, Any]]] = [
        (x**2, {"exponent": 2}),
        (x.sum() / 4, {"other": 4}),
        (functional.mse_loss(x, x.detach()), {"reduction": 1}),
        (functional.mse_loss(x, x.detach(), reduction="none"), {"reduction": 0}),
        (functional.nll_loss(x, classes), {"reduction": 1, "weight": None}),
        (x.sum(1), {"dim": (1,)}),
        (x.permute(1, 0), {"dims": (1, 0)}),
        (x.transpose(0, 1), {"dim0": 0, "dim1": 1}),
        (x[1:3], {"dim": 0, "start": 1, "end": 3, "step": 1}),
        (torch.cat([x, x], 1), {"dim": 1}),
        (x.log_softmax(1), {"dim": 1}),
    ]
    for out, settings in wanted:
        for name, value in settings.items():
            found = insides.saved(out.grad_fn, name)
            assert found == value, (type(out.grad_fn).__name__, name)
    assert insides.saved(x.sum().grad_fn, "dim", None) is None
    assert insides.shape_of_output(x.sum(1).grad_fn, 0) == (4,)
    assert insides.dtype_of_output(x.sum(1).bfloat16().grad_fn, 0) is torch.bfloat16


def test_a_node_of_a_custom_function_names_its_class_and_one_of_torch_does_not() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 2

    x = torch.ones(2, requires_grad=True)
    assert insides.function_of(Double.apply(x).grad_fn) is Double
    assert insides.function_of((x * 2).grad_fn) is None


def test_step_hooks_hang_on_what_ran_the_constructor_of_optimizers() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self) -> None:
            pass

    assert insides.takes_step_hooks(torch.optim.SGD([torch.zeros(1)], lr=0.1))
    assert not insides.takes_step_hooks(Wrapper())


def test_a_process_group_says_how_long_it_waits_and_replicas_whether_they_have_hooks(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1, timeout=timedelta(seconds=17)
    )
    try:
        assert insides.timeout_of(torch.distributed.group.WORLD) == timedelta(seconds=17)
        replica = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        assert not insides.has_communication_hooks(replica)
        replica.register_comm_hook(None, _reduced)
        assert insides.has_communication_hooks(replica)
    finally:
        torch.distributed.destroy_process_group()


def _reduced(state, bucket):  # type: ignore[no-untyped-def]  # torch looks at its annotations
    raise AssertionError("no ordinary gradient is reduced")


def test_the_hooks_on_a_node_are_found_and_none_is_left() -> None:
    node: Any = (torch.ones(2, requires_grad=True) * 2).grad_fn
    before, after = (lambda gradients: None), (lambda gradients, given: None)
    assert insides.hooks_of_node(node) == ([], [])
    node.register_prehook(before)
    node.register_hook(after)
    assert insides.hooks_of_node(node) == ([before], [after])


def test_a_hook_that_is_put_first_runs_before_the_others() -> None:
    seen: list[str] = []
    values = torch.ones(2, requires_grad=True) * 2
    values.register_hook(lambda _: seen.append("later"))  # type: ignore[no-untyped-call]
    insides.put_first(values, lambda _: seen.append("first"))
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert seen == ["first", "later"]


def test_what_packs_saved_tensors_here_is_known_and_dispatch_modes_are() -> None:
    def pack(tensor: Any) -> Any:
        return tensor

    assert insides.saved_tensors_hooks_here() is None
    with torch.autograd.graph.saved_tensors_hooks(pack, pack):
        assert insides.saved_tensors_hooks_here() == (pack, pack)
    with insides.TorchDispatchMode() as mode:
        assert insides.dispatch_modes() == [mode]
    assert insides.dispatch_modes() == []


def test_a_loop_that_is_left_when_the_process_ends_asks_nothing_more_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are being taken apart then, and what fails in a finalizer is printed."""

    class Loop:
        pass

    importlib.import_module("torch._dynamo")  # before it there is nothing to want
    gc.collect()
    before = dict(insides.EagerCode._wanted)
    insides.EagerCode._wanted.clear()
    asked: list[Any] = []
    former = SimpleNamespace(__exit__=lambda *error: asked.append(error))
    monkeypatch.setattr(insides.EagerCode, "_former", former)
    try:
        loop = Loop()
        insides.EagerCode.want(loop)
        with monkeypatch.context() as ending:
            ending.setattr(sys, "is_finalizing", lambda: True)
            del loop
        assert not asked
        loop = Loop()
        insides.EagerCode.want(loop)
        del loop
        assert len(asked) == 1
    finally:
        insides.EagerCode._wanted.update(before)
