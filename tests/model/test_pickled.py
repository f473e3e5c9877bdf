import os
import pickle
import subprocess
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.model import pickled
from runner.model.pickled import Damaged, Inert, PickledTensor, Storage, interpret

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x0ctQ"


class Calls:
    """An object whose pickle calls `function`."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def refusal(program: bytes) -> str:
    with pytest.raises(Damaged) as caught:
        interpret(program)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_they_were(protocol):
    shared = ["a", 2, 3.5, None, True, False]
    document = {"list": shared, "again": shared, "tuple": ((), (1,), (1, 2), (1, 2, 3), tuple(range(9))),
                "big": 1 << 40, "negative": -5, "bytes": b"x", "long": "x" * 300, "nested": {1: {2: {}}}}  # fmt: skip
    document["many"] = {f"key {n}": n for n in range(3000)}
    found = interpret(pickle.dumps(document, protocol))
    found["bytes"] = document["bytes"]  # protocol 2 has no bytes: it asks for an encoder, which is inert
    assert found == document
    assert found["list"] is found["again"]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "posix.system"),
        (eval, "__import__('os').mknod('{}')", "builtin"),
        (exec, "__import__('os').mknod('{}')", "builtin"),
        (__import__, "os", "builtin"),
        (getattr, "os", "builtin"),
        (subprocess.Popen, "touch {}", ".Popen"),
        (open, "{}", "io.open"),
    ],
)
def test_a_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path, protocol, function, argument, name):
    mark = tmp_path / "ran"
    program = pickle.dumps({"state_dict": [Calls(function, argument.format(mark))]}, protocol)
    message = refusal(program)
    assert name in message and "nothing of it was run" in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(X\x04\x00\x00\x00truetR.",
        b"(X\x04\x00\x00\x00trueios\nsystem\n.",
        b"(cos\nsystem\nX\x04\x00\x00\x00trueo.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
        b"cos\nsystem\nX\x04\x00\x00\x00trueb.",
    ],
    ids=["REDUCE", "INST", "OBJ", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "BUILD"],
)
def test_every_instruction_that_can_call_is_refused(program):
    assert "asks for os.system" in refusal(program)


@pytest.mark.parametrize(
    "name",
    ["torch._utils._rebuild_tensor", "torch.load", "torch.hub.load", "torch._utils.os.system", "torch.storage.io",
     "collections.OrderedDict.__init__.__globals__", "pytorch_lightning_x.y", "lightningx.y", "builtins.eval",
     "numpy.load", "runner.pickled.interpret", "copyreg._reconstructor", "operator.attrgetter"],
)  # fmt: skip
def test_like_names_are_other_names(name):
    module, _, attribute = name.rpartition(".")
    assert name in refusal(b"c" + module.encode() + b"\n" + attribute.encode() + b"\n.")


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_registered_extensions_are_refused(opcode):
    assert "EXT" in refusal(b"\x80\x02" + opcode + b".")


def test_a_tensor_is_noted_and_not_made():
    program = b"\x80\x02" + TENSOR + b"(" + STORAGE + b"K\x02K\x02K\x03\x86K\x03K\x01\x86\x89}tR."
    tensor = interpret(program)
    assert tensor == PickledTensor(Storage("F32", "0"), 2, (2, 3), (3, 1))
    assert tensor.is_contiguous()
    parameter = b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + program[2:-1] + b"\x88}tR."
    assert interpret(parameter) == tensor


@pytest.mark.parametrize(
    "arguments",
    [
        b")",  # nothing
        b"(K\x01K\x02K\x03t",  # no storage
        b"(" + STORAGE + b"K\x00K\x02K\x01t",  # a shape that is a number
        b"(" + STORAGE + b"K\x00K\x02\x85K\x01K\x01\x86t",  # more strides than dimensions
        b"(" + STORAGE + b"J\xff\xff\xff\xffK\x02\x85K\x01\x85t",  # a negative offset
        b"(" + STORAGE + b"K\x00J\xff\xff\xff\xff\x85K\x01\x85t",  # a negative length
        b"(" + STORAGE + b"K\x00\x88\x85K\x01\x85t",  # a length that is a truth value
        b"(" + STORAGE + b"K\x00\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01\x85K\x01\x85t",  # 2**64
        b"(" + STORAGE + b"K\x00(" + b"K\x01" * 9 + b"t(" + b"K\x01" * 9 + b"tt",  # nine dimensions
        b"(X\x01\x00\x00\x00xX\x01\x00\x00\x00xX\x01\x00\x00\x00xt",
    ],
)
def test_a_tensor_that_is_described_wrongly_is_refused(arguments):
    refusal(b"\x80\x02" + TENSOR + arguments + b"R.")


@pytest.mark.parametrize("key", [b"K\x01", b"(X\x07\x00\x00\x00storaget", b"N", b"(X\x06\x00\x00\x00moduleK\x01K\x01t"])
def test_a_storage_that_is_described_wrongly_is_refused(key):
    assert "storage" in refusal(b"\x80\x02" + key + b"Q.")


@pytest.mark.parametrize(
    ("shape", "strides", "contiguous"),
    [((2, 3), (3, 1), True), ((2, 3), (1, 2), False), ((3, 4), (0, 1), False), ((1, 3), (99, 1), True), ((), (), True),
     ((0, 3), (7, 7), True), ((4, 3, 1, 1), (3, 1, 1, 1), True), ((4, 3, 2, 2), (12, 1, 6, 3), False)],
)  # fmt: skip
def test_only_numbers_in_order_are_contiguous(shape, strides, contiguous):
    assert PickledTensor(Storage("F32", "0"), 0, shape, strides).is_contiguous() is contiguous


def test_what_old_checkpoints_bring_along_is_inert():
    class_as_key = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    made = class_as_key + b")\x81}X\x01\x00\x00\x00aK\x01sb"
    found = interpret(b"\x80\x02}(" + class_as_key + b"K\x01X\x01\x00\x00\x00a" + made + b"X\x01\x00\x00\x00bK\x02u.")
    assert isinstance(found.pop("a"), Inert)
    assert found == {"b": 2}


def test_an_ordered_dictionary_is_a_dictionary():
    made = OrderedDict(a=1, b=OrderedDict(c=2))
    made._metadata = {"version": 1}
    assert interpret(pickle.dumps(made, 2)) == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    "program",
    [b"", b".", b"\x80\x02", b"t.", b"R.", b"s.", b"K\x01K\x01a.", b"K\x01K\x01K\x01s.", b"h\x05.", b"\x93.",
     b"}(K\x01u.", b"]]\x93.", b"K\x01)R.", b"X\xff\xff\xff\x7fabc.", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
     b"not a pickle",     b"L" + b"9" * 5000 + b"L\n.", b"P1\n."],
)  # fmt: skip
def test_a_damaged_pickle_is_refused(program):
    refusal(program)


def test_memory_is_bounded(limit):
    limit(pickled, INSTRUCTION_LIMIT=1000)
    assert "more than 1,000 instructions" in refusal(b"]" * 1100 + b".")


def test_deep_nesting_is_no_recursion():
    deep = b"\x80\x02)" + b"\x85" * 200_000
    assert isinstance(interpret(deep + b"."), tuple)
    as_key = b"\x80\x02}" + deep[2:] + b"K\x01s."
    assert interpret(as_key) == {}
    assert "not text" in refusal(deep + deep[2:] + b"\x93.")


def is_read_or_refused(program):
    """Whether a pickle has an answer; any other error than a refusal is a fault of the reader, and passes through."""
    try:
        interpret(program)
    except Damaged as refused:
        return bool(str(refused))
    return True


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(program):
    for begin in (b"", b"\x80\x02", b"\x80\x02}(" + TENSOR + STORAGE):
        assert is_read_or_refused(begin + program)


@given(st.lists(st.sampled_from(
    [b"(", b"}", b"]", b")", b"\x85", b"\x86", b"t", b"R", b"b", b"s", b"u", b"a", b"e", b"0", b"Q", b"q\x00", b"h\x00",
     b"K\x01", b"X\x01\x00\x00\x00a", TENSOR, STORAGE, b"ccollections\nOrderedDict\n", b"\x81", b"o", b"\x93", b"\x94"]
), max_size=30))  # fmt: skip
def test_any_program_is_read_or_refused(program):
    assert is_read_or_refused(b"".join(program) + b".")
