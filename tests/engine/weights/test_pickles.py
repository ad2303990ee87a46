"""Untrusted pickles: plain values are read as pickle does, and nothing that they name is run."""

from __future__ import annotations

import argparse
import builtins
import collections
import contextlib
import io
import os
import pickle
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c2fdft_cli.engine.weights import pickles
from c2fdft_cli.engine.weights.build import make_network
from c2fdft_cli.engine.weights.checkpoint import load_checkpoint
from c2fdft_cli.engine.weights.pickles import Opaque, StoredTensor, UnusableError
from c2fdft_cli.engine.weights.pickles import read_pickle as read
from c2fdft_cli.errors import CheckpointError
from c2fdft_cli.recipe.schema import Network

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary().filter(bool),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(-9, 9) | st.none(), inner)
    ),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.sampled_from((3, 4, 5)))
def test_plain_values_are_read_as_by_pickle(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_is_read(protocol):
    shared = [1, 2]
    value = {"a": (1, 2.5, "é", None, True), "b": [shared, shared], 3: (), "d": {"e": -(1 << 70)}}
    back = read(pickle.dumps(value, protocol))
    assert back == value
    assert back["b"][0] is back["b"][1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_tuple_that_contains_itself_is_read(protocol):
    value = ([],)
    value[0].append(value)
    back = read(pickle.dumps(value, protocol))
    assert back[0][0] is back


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=0.1, out="runs"), "argparse.Namespace"),
        (Path("runs/1"), f"{type(Path()).__module__}.{type(Path()).__name__}"),
        (slice(1, 2), "builtins.slice"),
        (len, "builtins.len"),
    ],
)
def test_objects_become_inert(value, name, protocol):
    found = read(pickle.dumps({"before": 1, "object": value, "after": [2]}, protocol))
    assert found["before"] == 1
    assert found["after"] == [2]
    assert isinstance(found["object"], Opaque)
    plain = found["object"].name.replace("__builtin__", "builtins").replace("copy_reg", "copyreg")
    assert plain in (name, "copyreg._reconstructor")


def test_sets_become_inert_and_ordered_dictionaries_plain():
    value = [{1, 2}, frozenset({3}), collections.OrderedDict(a=1), collections.Counter("aab")]
    sets, frozen, ordered, counted = read(pickle.dumps(value, 4))
    assert (sets, frozen) == (Opaque("builtins.set"), Opaque("builtins.frozenset"))
    assert (ordered, counted) == ({"a": 1}, {"a": 2, "b": 1})


class System:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Eval(System):
    def __reduce__(self):
        return builtins.eval, (f"open({str(self.mark)!r}, 'w').close()",)


class Nested(System):
    def __reduce__(self):
        return getattr, (System(self.mark), "real")


class SetState(System):
    """Created without a call; the code is in `__setstate__`."""

    def __reduce__(self):
        return object.__new__, (SetState,), {"mark": self.mark}

    def __setstate__(self, state):
        state["mark"].touch()


class Items(System):
    """The code is in `append` and `__setitem__`, which unpickling calls to fill a container."""

    def __reduce__(self):
        return Filled, (self.mark,), None, iter([1]), iter([("a", 1)])


class Filled:
    def __init__(self, mark):
        self.mark = mark

    def append(self, _):
        self.mark.touch()

    extend = append

    def __setitem__(self, *_):
        self.mark.touch()


def inst(mark):
    return b"(S'touch %s'\nios\nsystem\n." % str(mark).encode()


def obj(mark):
    return b"(cos\nsystem\nS'touch %s'\no." % str(mark).encode()


def stack_global(mark):
    command = f"touch {mark}".encode()
    return b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."


ATTACKS = [
    *(lambda mark, made=made: pickle.dumps(made(mark)) for made in (System, Eval, Nested)),
    *(lambda mark, made=made: pickle.dumps(made(mark)) for made in (SetState, Items)),
    *(lambda mark: pickle.dumps({"a": [System(mark)]}, 0), inst, obj, stack_global),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_does_not_run(attack, tmp_path):
    data = attack(tmp_path / "mark")
    read(data)
    assert not (tmp_path / "mark").exists()
    # the attack is real: pickle runs it
    pickle.loads(data)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("made", [System, Eval, Nested, SetState, Items])
def test_an_attack_beside_weights_does_not_run_and_they_load(made, tmp_path):
    state = make_network(Network(dim=8, blocks=[1, 1, 1, 1])).state_dict()
    path, mark = tmp_path / "x.pth", tmp_path / "mark"
    content = {"state_dict": state, "extra": made(mark)}
    torch.save(content, path)
    loaded = load_checkpoint(path).ema
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_instead_of_weights_is_refused(attack, tmp_path):
    path, mark = tmp_path / "x.pth", tmp_path / "mark"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", attack(mark))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    path.write_bytes(attack(mark))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not mark.exists()


def test_a_persistent_id_reaches_no_file(tmp_path):
    class Writer(pickle.Pickler):
        def persistent_id(self, obj):
            return ("file", str(tmp_path)) if obj == "me" else None

    file = io.BytesIO()
    Writer(file, 2).dump(["me"])
    assert read(file.getvalue()) == [Opaque("persistent object")]
    assert isinstance(read(b"P/etc/passwd\n."), Opaque)


def test_nothing_is_imported():
    assert "antigravity" not in sys.modules
    assert read(b"cantigravity\ngeohash\n.") == Opaque("antigravity.geohash")
    assert "antigravity" not in sys.modules


def storage(kind="FloatStorage", numel=6, key="0"):
    return b"((S'storage'\nctorch\n%s\nS'%s'\nS'cpu'\nI%d\ntQ" % (
        kind.encode(),
        key.encode(),
        numel,
    )


def tensor(shape=b"(I2\nI3\nt", stride=b"(I3\nI1\nt", offset=b"I0\n", **of):
    rest = b"I00\nNtR."
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + storage(**of) + offset + shape + stride + rest


def test_a_tensor_is_described():
    expected = StoredTensor("0", 24, torch.float32, 0, (2, 3), (3, 1))
    assert read(tensor()) == expected


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": b"(I-2\nI3\nt"},
        {"shape": b"(I2\nt"},
        {"shape": b"(I2\nF3.0\nt"},
        {"shape": b"I2\n"},
        {"shape": b"(L%dL\nI3\nt" % (1 << 70)},
        {"shape": b"(" + b"I1\n" * 65 + b"t", "stride": b"(" + b"I1\n" * 65 + b"t"},
        {"stride": b"(I-3\nI1\nt"},
        {"offset": b"I-1\n"},
        {"offset": b"N"},
    ],
)
def test_impossible_shapes_are_refused(changed):
    with pytest.raises(UnusableError, match="impossible shape"):
        read(tensor(**changed))


@pytest.mark.parametrize("changed", [{"kind": "HerringStorage"}, {"numel": -1}])
def test_impossible_storages_are_refused(changed):
    assert isinstance(read(tensor(**changed)), Opaque)


COLLIDING = b"".join(
    b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for i in range(20_000)
)
LONG = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000
SLOW = {
    "nested tuples as a key": b"})" + b"\x85" * 150_000 + b"Ns.",
    "keys that collide": b"}(" + COLLIDING + b"u.",
    "a dictionary copied often": b"}("
    + b"".join(b"I%d\nN" % i for i in range(20_000))
    + b"uq\x00ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x00\x85R0" * 20_000
    + b"N.",
    "one argument list for many calls": b"("
    + b"N" * 30_000
    + b"tq\x00ctorch\nSize\nq\x01"
    + b"h\x01h\x00R0" * 30_000
    + b"N.",
}
LARGE = {
    "claimed text": b"X\xff\xff\xff\xff",
    "claimed bytes": b"\x80\x05\x8e" + b"\xff" * 7 + b"\x7f",
    "claimed bytearray": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f",
    "memo": b"Nr\xff\xff\xff\x7f0" * 1_000 + b"N.",
    "names": b"\x80\x04" + LONG + b"q\x00" + b"h\x00h\x00\x93" * 2_000 + b".",
}


def test_a_call_with_many_arguments_which_would_be_copied_is_not_made():
    most = pickles.MAX_ARGUMENTS
    called, not_called = (
        read(b"ctorch\nSize\n(" + b"I7\n" * count + b"tR.") for count in (most, most + 1)
    )
    assert (called, not_called) == (7, Opaque("torch.Size"))


@pytest.mark.parametrize("kind", SLOW)
def test_no_pickle_takes_quadratic_time(kind):
    start = time.process_time()
    read(SLOW[kind])
    assert time.process_time() - start < 3


@pytest.mark.parametrize("kind", LARGE)
def test_claimed_sizes_take_no_memory(kind):
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        read(LARGE[kind])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"N" * 600_000, "500000 instructions"), (b"c" + b"a" * (80 << 20), "64 MiB")],
)
def test_pickles_beyond_the_limits_are_refused(data, says):
    with pytest.raises(UnusableError, match=says):
        read(data)


@pytest.mark.parametrize("data", [b"", b".", b"N", b"\x80\x02", b"(", b"h\x05.", b"\xff", b"R."])
def test_fragments_are_errors(data):
    with pytest.raises((IndexError, KeyError, ValueError)):
        read(data)


def test_limits_are_beyond_any_network():
    # 25 instructions per tensor; the largest official network has 1,200 tensors in both sets
    assert pickles.MAX_INSTRUCTIONS > 10 * 25 * 1_200
