"""Pickles, zips and YAML that try to run code, or to hang or fill the process that reads them."""

import base64
import io
import json
import math
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn

# ------------------------------------------------------------ a small assembler for pickles


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(path: str) -> bytes:
    """A global in protocol 4: the name may have dots."""
    module, _, attribute = path.partition(":")
    return text(module) + text(attribute) + b"\x93"


def old_name(path: str) -> bytes:
    module, _, attribute = path.partition(":")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_of(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def call(path: str, *args: bytes) -> bytes:
    return name(path) + tuple_of(*args) + b"R"


def new(path: str, *args: bytes) -> bytes:
    return name(path) + tuple_of(*args) + b"\x81"


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def zeros(*shape: int) -> bytes:
    """An array of bytes, with all of them."""
    dtype = call("numpy:dtype", text("u1"), b"\x89", b"\x88")
    return call("numpy._core.numeric:_frombuffer", raw(bytes(math.prod(shape))), dtype, sizes(*shape), text("C"))


def sizes(*shape: int) -> bytes:
    return tuple_of(*map(number, shape))


def noise(**attributes: bytes) -> bytes:
    return new("stable_baselines3.common.noise:NormalActionNoise") + dict_of(**attributes) + b"b"


# --------------------------------------------------------------------------------- vectors


def vectors(canary: str) -> dict[str, bytes]:
    """Pickles by name; the unpickler of Python would create the file ``canary`` with most of them."""
    command = text(f"touch {canary}")
    code = text(f"open({canary!r}, 'w').close()")
    system = call("os:system", command)
    inner = whole(system)
    found = {
        # every instruction that reaches a callable
        "reduce": system,
        "reduce, protocol 0": f"cos\nsystem\n(Vtouch {canary}\ntR".encode(),
        "reduce, posix": call("posix:system", command),
        "reduce, exec": call("builtins:exec", code),
        "reduce, eval": call("builtins:eval", text(f"open({canary!r}, 'w')")),
        "reduce, Python 2's names": old_name("__builtin__:eval") + tuple_of(text(f"open({canary!r}, 'w')")) + b"R",
        "reduce, open": call("builtins:open", text(canary), text("w")),
        "reduce, io.open": call("io:open", text(canary), text("w")),
        "reduce, subprocess": call("subprocess:check_output", b"](" + text("touch") + text(canary) + b"e"),
        "reduce, runpy": call("runpy:_run_code", code, b"}"),
        "reduce, timeit": call("timeit:timeit", code, text("pass"), name("time:time"), number(1)),
        "reduce, pty": call("pty:spawn", b"](" + text("touch") + text(canary) + b"e"),
        "reduce, code module": call("code:interact", text("x"), name("builtins:input"), b"}"),
        "reduce, compile": call("builtins:compile", code, text("x"), text("exec")),
        "reduce, import": call("importlib:import_module", text("antigravity")),
        "reduce, __import__": call("builtins:__import__", text("this")),
        "inst": f"(Vtouch {canary}\nios\nsystem\n".encode(),
        "obj": b"(" + old_name("os:system") + command + b"o",
        "newobj": new("subprocess:Popen", b"](" + text("touch") + text(canary) + b"e"),
        "newobj_ex": name("subprocess:Popen") + tuple_of(text("touch")) + b"}" + b"\x92",
        "stack_global from the memo": text("os")
        + b"\x94"
        + text("system")
        + b"\x94"
        + b"h\x00h\x01\x93"
        + command
        + b"\x85R",
        "dotted name": call("builtins:object.__subclasses__"),
        "dotted name into os": call("pathlib:os.system", command),
        "dotted name of an allowed class": call("numpy:ndarray.tofile", text(canary)),
        "dotted name below torch.nn": call("torch.nn:modules.module.os.system", command),
        "dotted name below this package": call("ddpg_ext.ddpg_paper.policies:chain.from_iterable", b"]"),
        "ext1": b"\x82\x01",
        "ext2": b"\x83\x01\x00",
        "ext4": b"\x84\x01\x00\x00\x00",
        "persistent id": b"Pos.system\n",
        "binary persistent id": system + b"Q",
        "next_buffer": b"\x97",
        "readonly_buffer": raw(b"x") + b"\x98",
        # pickles in pickles
        "nested pickle": call("pickle:loads", raw(inner)),
        "nested _pickle": call("_pickle:loads", raw(inner)),
        "nested cloudpickle": call("cloudpickle:loads", raw(inner)),
        "nested in a numpy scalar": call(
            "numpy._core.multiarray:scalar", call("numpy:dtype", text("O8"), b"\x89", b"\x88"), raw(inner)
        ),
        "nested numpy.load": call("numpy:load", text(canary)),
        "nested torch.load": call("torch:load", text(canary)),
        "nested SB3 load": call("stable_baselines3.common.save_util:load_from_pkl", text(canary)),
        # allow-listed things as gadgets
        "getattr": call("builtins:getattr", name("os:system"), text("__call__")),
        "getattr of an enum": call(
            "builtins:getattr", name("stable_baselines3.common.type_aliases:TrainFrequencyUnit"), text("__class__")
        ),
        "object array with a call": call(
            "numpy._core.multiarray:_reconstruct", name("numpy:ndarray"), tuple_of(number(0)), raw(b"b")
        )
        + tuple_of(
            number(1),
            tuple_of(number(1)),
            call("numpy:dtype", text("O8"), b"\x89", b"\x88"),
            b"\x89",
            b"](" + system + b"e",
        )
        + b"b",
        "array of another class": call(
            "numpy._core.multiarray:_reconstruct", name("numpy:memmap"), tuple_of(number(0)), raw(b"b")
        )
        + tuple_of(
            number(1), tuple_of(number(1)), call("numpy:dtype", text("u1"), b"\x89", b"\x88"), b"\x89", raw(b"x")
        )
        + b"b",
        "array larger than its data": call(
            "numpy._core.multiarray:_reconstruct", name("numpy:ndarray"), tuple_of(number(0)), raw(b"b")
        )
        + tuple_of(
            number(1),
            tuple_of(number(2**30), number(2**30)),
            call("numpy:dtype", text("u1"), b"\x89", b"\x88"),
            b"\x89",
            raw(b"x"),
        )
        + b"b",
        "array of negative size": call(
            "numpy._core.numeric:_frombuffer",
            raw(b"abcd"),
            call("numpy:dtype", text("u1"), b"\x89", b"\x88"),
            tuple_of(number(-4)),
            text("C"),
        ),
        "array of pointers from bytes": call(
            "numpy._core.numeric:_frombuffer",
            raw(b"\x01" * 8),
            call("numpy:dtype", text("O8"), b"\x89", b"\x88"),
            tuple_of(number(1)),
            text("C"),
        ),
        "structured dtype": call("numpy:dtype", text("V8"), b"\x89", b"\x88")
        + tuple_of(number(3), text("|"), b"N", tuple_of(text("a")), dict_of(a=system), number(8), number(1), number(0))
        + b"b",
        "schedule of a call": new("stable_baselines3.common.utils:FloatSchedule")
        + dict_of(value_schedule=system)
        + b"b",
        "schedule of a class": new("stable_baselines3.common.utils:FloatSchedule")
        + dict_of(value_schedule=name("torch.nn.modules.linear:Linear"))
        + b"b",
        "schedule of os.system": new("stable_baselines3.common.utils:FloatSchedule")
        + dict_of(value_schedule=name("os:system"))
        + b"b",
        "noise with a method": new("stable_baselines3.common.noise:NormalActionNoise")
        + dict_of(_mu=number(0), _sigma=number(0), reset=name("torch.nn.modules.linear:Linear"))
        + b"b",
        "noise with a dtype that is code": new("stable_baselines3.common.noise:NormalActionNoise")
        + dict_of(_mu=number(0), _sigma=number(0), _dtype=name("os:system"))
        + b"b",
        "noise with constructor arguments": new(
            "stable_baselines3.common.noise:NormalActionNoise", number(1), number(2)
        ),
        "known class with another's state": new("stable_baselines3.common.noise:NormalActionNoise")
        + tuple_of(b"N", dict_of(_mu=system))
        + b"b",
        "state set twice": new("stable_baselines3.common.noise:NormalActionNoise")
        + dict_of(_mu=number(0), _sigma=number(0))
        + b"b"
        + dict_of(_mu=number(0), __class__=name("os:system"))
        + b"b",
        "state of a dict": b"}" + dict_of(__class__=name("os:system")) + b"b",
        "class that is called": call("torch.nn.modules.linear:Linear", number(2**20), number(2**20)),
        "policy class that is called": call("stable_baselines3.td3.policies:TD3Policy", b"N", b"N", b"N"),
        "result that is called": call("builtins:getattr", name("builtins:str"), text("format"))
        + tuple_of(command)
        + b"R",
        "deque of a call": call("collections:deque", tuple_of(), number(3)) + system + b"a",
        "deque of negative length": call("collections:deque", tuple_of(), number(-3)),
        "OrderedDict of a call": call("collections:OrderedDict") + b"(" + text("x") + system + b"u",
        "defaultdict": call("collections:defaultdict", name("os:system")),
        "partial": call("functools:partial", name("os:system"), command),
        "attrgetter": call("operator:attrgetter", text("system")),
        "methodcaller": call("operator:methodcaller", text("system"), command),
        "reconstructor": call("copyreg:_reconstructor", name("os:system"), name("builtins:object"), b"N"),
        "reconstructor of an int": call(
            "copyreg:_reconstructor", name("builtins:int"), name("builtins:int"), number(1)
        ),
        "reconstructor of itself": call(
            "copyreg:_reconstructor", name("copyreg:_reconstructor"), name("builtins:object"), b"N"
        ),
        "__newobj__": call("copyreg:__newobj__", name("subprocess:Popen"), text("touch")),
        "codec that is another": call("_codecs:encode", command, text("rot13")),
        "enum member that is none": call("stable_baselines3.common.type_aliases:TrainFrequencyUnit", system),
        "TrainFreq of a call": new("stable_baselines3.common.type_aliases:TrainFreq", system, number(1)),
        "space with a call": new("gymnasium.spaces.box:Box")
        + dict_of(low=system, high=number(1), dtype=text("f4"))
        + b"b",
        "space of another kind": new("gymnasium.spaces.graph:Graph") + dict_of(a=number(1)) + b"b",
        "space of no shape": new("gym.spaces.multi_binary:MultiBinary") + dict_of(n=number(2**31 - 1)) + b"b",
        "generator that reads elsewhere": call("numpy.random._pickle:__generator_ctor", text("MT19937"))
        + dict_of(
            bit_generator=text("MT19937"),
            state=dict_of(key=number(0), pos=number(10**9)),
            has_uint32=number(0),
            uinteger=number(0),
        )
        + b"b",
        "generator of another name": call("numpy.random._pickle:__generator_ctor", text("os.system"))
        + dict_of(bit_generator=text("os.system"), state=b"}")
        + b"b",
        "function, stored as code": call(
            "cloudpickle.cloudpickle:_make_function",
            call(
                "types:CodeType", number(0), number(0), number(0), number(0), number(2), number(0), raw(b"d\x00S\x00")
            ),
            b"}",
            text("f"),
            b"N",
            b")",
        ),
        "function with another closure": call(
            "cloudpickle.cloudpickle:_make_function",
            call("types:CodeType", number(1), raw(b"\x95\x01\x97\x00\x89\x01S\x00")),
            b"}",
            text("f"),
            b"N",
            tuple_of(call("cloudpickle.cloudpickle:_make_cell", system)),
        ),
        "cloudpickle's class": call("cloudpickle.cloudpickle:_make_skeleton_class", name("builtins:type"), text("x")),
        "cloudpickle's module": call("cloudpickle.cloudpickle:subimport", text("this")),
        "state setter as a function": call("cloudpickle.cloudpickle:_function_setstate", name("os:system"), b"}"),
        # hangs and memory
        "list in itself": b"]\x940h\x00h\x00a",
        "dict in itself": b"}\x94" + text("x") + b"h\x00s",
        "tuples in tuples": b")" + b"\x85" * 50_000,
        "lists in lists": b"]" * 3_000 + b"a" * 2_999,
        "billion laughs": b"]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(50)),
        "billion laughs in tuples": b")\x94"
        + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86\x94" for i in range(40)),
        "colliding keys": b"}("
        + b"".join(b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") + b"N" for i in range(1, 20_000))
        + b"u",
        "colliding members": call(
            "builtins:set",
            b"](" + b"".join(b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") for i in range(1, 20_000)) + b"e",
        ),
        "huge integer": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        "huge integer in text": b"L" + b"9" * 100_000 + b"L\n",
        "huge promise": b"\x8e" + struct.pack("<Q", 2**62) + b"x",
        "huge bytearray": call("builtins:bytearray", number(2**31 - 1)),
        "many instructions": b"]" * 310_000,
        "many names": b"".join(name(f"m{i}:n") + b"0" for i in range(2_000)) + b"N",
        "key that is a tuple": b"}" + tuple_of(number(1), number(2)) + b"Ns",
        "key that is a number with a point": b"}G" + struct.pack(">d", 0.5) + b"Ns",
        "member that is a frozenset": b"\x8f((K\x01\x91\x90",
        "key from the memo": b"\x8a\x09" + (2**64 + 1).to_bytes(9, "little") + b"\x94}h\x00Ns",
        "noise that broadcasts": noise(_mu=zeros(2_000, 1), _sigma=zeros(1, 2_000)),
        "noise in noise that broadcasts": new("ddpg_ext.common.noise:ScheduledActionNoise")
        + dict_of(noise=noise(_mu=zeros(4_000, 1), _sigma=zeros(4_000)), schedule=b"N", n_steps=number(0))
        + b"b",
        "one noise for a million environments": new("stable_baselines3.common.noise:VectorizedActionNoise")
        + dict_of(
            n_envs=number(1),
            _base_noise=noise(_mu=number(0), _sigma=number(0)) + b"\x94",
            _noises=b"](" + b"h\x00" * 120_000 + b"e",
        )
        + b"b",
        "statistics that broadcast": new("stable_baselines3.common.running_mean_std:RunningMeanStd")
        + dict_of(mean=zeros(2_000, 1), var=zeros(1, 2_000), count=number(1))
        + b"b",
        "space of negative size": new("gymnasium.spaces.multi_binary:MultiBinary") + dict_of(n=number(-5)) + b"b",
        "space of many bits": new("gymnasium.spaces.multi_binary:MultiBinary") + dict_of(n=sizes(10**6, 10**6)) + b"b",
        "space of one part, often": new("gymnasium.spaces.dict:Dict")
        + dict_of(
            spaces=dict_of(a=new("gymnasium.spaces.multi_binary:MultiBinary") + dict_of(n=number(10**6)) + b"b\x94")
            + b"("
            + b"".join(text(str(i)) + b"h\x00" for i in range(200))
            + b"u"
        )
        + b"b",
        "place far away in the memo": b"]r" + struct.pack("<I", 2**32 - 1),
        "frame in a frame": b"\x95" + struct.pack("<Q", 12) + b"\x95" + struct.pack("<Q", 1) + b"N",
        "frame that ends within an instruction": b"\x95" + struct.pack("<Q", 3) + text("abc"),
        "frame beyond the end": b"\x95" + struct.pack("<Q", 2**40) + b"N",
        # broken
        "empty stack": b"0",
        "unhashable key": b"}](" + number(1) + b"e" + number(1) + b"s",
        "mark without end": b"((((",
        "memo that is not there": b"h\x07",
        "nothing": b"",
    }
    return {key: whole(body) for key, body in found.items()}


def broken_pickles(good: bytes) -> dict[str, bytes]:
    """Truncated and altered versions of a pickle that is fine."""
    flipped = bytearray(good)
    flipped[len(good) // 3] ^= 0x41
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "trailing": good + b"x",
        "not a pickle": b"hello, world",
        "two pickles": good + good,
        "protocol 200": b"\x80\xc8" + good[2:],
        "zeros": bytes(1000),
    }


# ----------------------------------------------------------------------------------- bombs


def bombs() -> dict[str, tuple[str, Any]]:
    """Attributes of a small model, by name, that would take all memory or time. Its policy is "MlpPolicy"."""
    networks = {
        "wide": {"net_arch": [10**6, 10**6]},
        "wide and ten": {"net_arch": [10] * 10 + [10**6] * 2},
        "actor wide": {"net_arch": {"pi": [10**6, 10**6], "qf": [4, 4]}},
        "critic wide": {"net_arch": {"pi": [4, 4], "qf": [10**6, 10**6]}},
        "wider than any": {"net_arch": [2**62, 2**62]},
        "wider than C knows": {"net_arch": [10**30, 10**30]},
        "deep": {"net_arch": [4] * 10_000},
        "very deep": {"net_arch": [1] * 200_000},
        "deep critic": {"net_arch": {"pi": [4, 4], "qf": [4] * 10_000}},
        "another width": {"net_arch": [4, 5]},
        "another depth": {"net_arch": [4, 4, 4]},
        "another action layer": {"net_arch": [4, 4], "action_layer": 1},
        "another normalisation": {"net_arch": [4, 4], "batch_norm": False},
        **{
            cls.__name__: {"net_arch": [4, 4], "activation_fn": cls}
            for cls in (nn.Transformer, nn.LSTM, nn.MultiheadAttention, nn.Linear, nn.Module, nn.CrossEntropyLoss)
        },
        "its extractor's features": {"net_arch": [4, 4], "features_extractor_kwargs": {"features_dim": 10**9}},
        "its optimiser's": {"net_arch": [4, 4], "optimizer_kwargs": {"params": [0] * 10**5}},
    }
    return {name: ("policy_kwargs", kwargs) for name, kwargs in networks.items()} | {
        "observations of many kinds": ("observation_space", spaces.Discrete(2**40)),
        "observations of very many kinds": ("observation_space", spaces.Discrete(2**62)),
        "observations of many kinds each": ("observation_space", spaces.MultiDiscrete([2**31 - 1] * 1_000)),
        "many bits": ("observation_space", spaces.MultiBinary(99_999_999)),
        "a long action": ("action_space", spaces.Box(-1, 1, (10**5,))),
        "a long noise": ("action_noise", NormalActionNoise(np.zeros(10**6), np.ones(10**6))),
        "a noise that broadcasts": ("action_noise", NormalActionNoise(np.zeros(9), np.ones((10**5, 1)))),
        "a noise that broadcasts far": ("action_noise", NormalActionNoise(np.zeros(10**5), np.ones((10**5, 1)))),
        "a batch": ("batch_size", 10**12),
        "environments": ("n_envs", 10**12),
        "transitions": ("buffer_size", 10**15),
        "episodes": ("_stats_window_size", 10**18),
    }


def bombs_of_images() -> dict[str, dict[str, Any]]:
    """The same for ``policy_kwargs`` of "CnnPolicy" with images of 20x20 pixels and small convolutions."""
    small = {"n_filters": 2, "kernel_sizes": [3, 3], "strides": [2, 2], "paddings": [0, 0]}
    extractors = {
        "filters": {**small, "n_filters": 10**9},
        "kernels": {**small, "kernel_sizes": [10**5, 3], "paddings": [10**5 - 1, 0]},
        "paddings": {**small, "paddings": [10**6, 0], "strides": [1, 10**6]},
        "convolutions": {"kernel_sizes": [1] * 10**5, "strides": [1] * 10**5, "paddings": [0] * 10**5},
    }
    found: dict[str, dict[str, Any]] = {name: {"features_extractor_kwargs": kw} for name, kw in extractors.items()}
    found["features"] = {
        "features_extractor_class": NatureCNN,
        "features_extractor_kwargs": {"features_dim": 10**10, "normalized_image": False},
    }
    found["flattened"] = {"features_extractor_class": FlattenExtractor, "net_arch": [10**6, 10**6]}
    return {name: {"net_arch": [4, 4], **kwargs} for name, kwargs in found.items()}


# ------------------------------------------------------------------------------------ zips


def edit_zip(good: bytes, replace: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with some members replaced (None: left out) or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(out, "w", compression) as target:
        for member in source.namelist():
            if member not in replace:
                target.writestr(member, source.read(member))
        for member, content in replace.items():
            if content is not None:
                target.writestr(member, content)
    return out.getvalue()


def with_field(good: bytes, field: str, pickled: bytes) -> bytes:
    """A model's zip with a pickle as one of its fields."""
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        data = json.loads(source.read("data"))
    # First, so that what follows costs no time
    item = {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()}
    return edit_zip(good, {"data": json.dumps({field: item, **{k: v for k, v in data.items() if k != field}}).encode()})


def with_data(good: bytes, **fields: object) -> bytes:
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        data = json.loads(source.read("data"))
    data.update(fields)
    return edit_zip(good, {"data": json.dumps(data).encode()})


def weights(data_pkl: bytes, **members: bytes) -> bytes:
    """A file in torch's format with this pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/version", "3\n")
        for member, content in members.items():
            archive.writestr(f"archive/data/{member}", content)
    return out.getvalue()


def raw_zip(members: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for info, content in members:
            archive.writestr(info, content)
    return out.getvalue()


def hostile_zips(good: bytes) -> dict[str, bytes]:
    """Zips that are wrong as zips."""
    link = zipfile.ZipInfo("policy.pth")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    odd = zipfile.ZipInfo("x")
    odd.compress_type = zipfile.ZIP_BZIP2
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b" " * (200 * 2**20))
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for i in range(10_500):
            archive.writestr(str(i), b"")
    duplicate = io.BytesIO()
    with zipfile.ZipFile(duplicate, "w") as archive:
        archive.writestr("data", b"{}")
        archive.start_dir = archive.fp.tell()
        archive.NameToInfo.clear()
        archive.writestr("data", b"{}")
    encrypted = bytearray(good)
    at = good.rfind(b"PK\x01\x02")
    encrypted[at + 8] |= 1
    slips = ["../../evil", "/etc/evil", "..\\evil", "C:evil", "a/../../evil"]
    files = {f"slip {slip}": raw_zip([(zipfile.ZipInfo(slip), b"x")]) for slip in slips}
    flips = {}
    for i in range(25):
        flipped = bytearray(good)
        flipped[len(good) * i // 25] ^= 0x55
        flips[f"flip {i}"] = bytes(flipped)
    cuts = {f"cut {i}": good[: len(good) * i // 10] for i in range(10)}
    return (
        files
        | cuts
        | flips
        | {
            "symbolic link": raw_zip([(link, b"/etc/passwd")]),
            "bzip2": raw_zip([(odd, b"x")]),
            "bomb": bomb.getvalue(),
            "bomb in a member": edit_zip(good, {"data": bytes(100 * 2**20)}, zipfile.ZIP_DEFLATED),
            "too many members": many.getvalue(),
            "two members of one name": duplicate.getvalue(),
            "encrypted": bytes(encrypted),
            "not a zip": b"hello, world",
            "a pickle": pickle.dumps({"a": 1}),
            "an empty zip": raw_zip([]),
            "a zip of something else": raw_zip([(zipfile.ZipInfo("readme.txt"), b"hello")]),
            "bytes before": b"x" * 7 + good[:-30],
        }
    )


# ------------------------------------------------------------------------------------ YAML


def hostile_yaml(canary: str) -> dict[str, str]:
    return {
        "os.system": f"!!python/object/apply:os.system ['touch {canary}']",
        "in a value": f"env: !!python/object/apply:os.system ['touch {canary}']",
        "in the OrderedDict": "!!python/object/apply:collections.OrderedDict\n"
        f"- - - env\n    - !!python/object/apply:os.system ['touch {canary}']",
        "OrderedDict with state": "!!python/object/apply:collections.OrderedDict\n"
        f"args: [[]]\nstate: !!python/object/apply:os.system ['touch {canary}']",
        "object/new": f"!!python/object/new:subprocess.Popen [['touch', '{canary}']]",
        "object": "!!python/object:ddpg_ext.DDPGPaper {}",
        "name": "env: !!python/name:os.system",
        "module": "env: !!python/module:this",
        "exec": f"!!python/object/apply:builtins.exec [\"open('{canary}','w')\"]",
        "Python 2's": f"!!python/object/apply:__builtin__.eval [\"open('{canary}','w')\"]",
        "UserDict": "!!python/object/apply:collections.UserDict [[]]",
        "local tag": "!evil {}",
        "verbose tag": f"!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {canary}']",
        "map instead of OrderedDict": f"!!python/object/apply:os.mkdir\nargs: ['{canary}']",
        "billion laughs": "a: &a [x,x]\n"
        + "".join(f"b{i}: &b{i} [*{'a' if i == 0 else f'b{i - 1}'}, *a]\n" for i in range(9)),
        "in itself": "env: &a [*a]",
        "deep": "[" * 5000,
        "not YAML": "{a: [",
        "a list": "[1, 2]",
        "a number": "17",
        "binary": "\x00\x01\x02",
        "two OrderedDicts": "!!python/object/apply:collections.OrderedDict [[[a, b]], [[c, d]]]",
        "keys that are none": "!!python/object/apply:collections.OrderedDict\n- - - [a]\n    - b",
        "huge": "a: " + "x" * 2**21,
    }
