"""Pickles, zips and YAML that try to run code, or to hang or fill the process that reads them."""

import base64
import io
import json
import math
import pickle
import struct
import zipfile
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import nn


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


def made(path: str, **attributes: bytes) -> bytes:
    """An object with these attributes."""
    return new(path) + dict_of(**attributes) + b"b"


def sizes(*shape: int) -> bytes:
    return tuple_of(*map(number, shape))


def dtype(code: str) -> bytes:
    return call("numpy:dtype", text(code), b"\x89", b"\x88")


def from_buffer(data: bytes, code: str, *shape: int) -> bytes:
    return call("numpy._core.numeric:_frombuffer", raw(data), dtype(code), sizes(*shape), text("C"))


def zeros(*shape: int) -> bytes:
    """An array of bytes, with all of them."""
    return from_buffer(bytes(math.prod(shape)), "u1", *shape)


def array(cls: str, code: str, data: bytes, *shape: int) -> bytes:
    """An array of a class by way of its state."""
    empty = call("numpy._core.multiarray:_reconstruct", name(cls), sizes(0), raw(b"b"))
    return empty + tuple_of(number(1), sizes(*shape), dtype(code), b"\x89", data) + b"b"


SB3 = "stable_baselines3.common."
NORMAL, SCHEDULE, TRAIN_FREQ = f"{SB3}noise:NormalActionNoise", f"{SB3}utils:FloatSchedule", f"{SB3}type_aliases:Train"
BITS, DICT = "gymnasium.spaces.multi_binary:MultiBinary", "gymnasium.spaces.dict:Dict"
FUNCTION = "cloudpickle.cloudpickle:_make_function"
LINEAR, OBJECT = name("torch.nn.modules.linear:Linear"), name("builtins:object")
noise = partial(made, NORMAL)


def vectors(canary: str) -> dict[str, bytes]:
    """Pickles by name; the unpickler of Python would create the file ``canary`` with most of them."""
    command, opened = text(f"touch {canary}"), text(f"open({canary!r}, 'w')")
    code, words = text(f"open({canary!r}, 'w').close()"), b"](" + text("touch") + text(canary) + b"e"
    system, os_system, zero = call("os:system", command), name("os:system"), number(0)
    inner, megabyte = raw(whole(system)), raw(bytes(2**20)) + b"\x940]("
    generator = partial(call, "numpy.random._pickle:__generator_ctor")
    constant = call("types:CodeType", zero, zero, zero, zero, number(2), zero, raw(b"d\x00S\x00"))
    returned = call("types:CodeType", number(1), raw(b"\x95\x01\x97\x00\x89\x01S\x00"))
    unnamed, cell = (b"}", text("f"), b"N"), call("cloudpickle.cloudpickle:_make_cell", system)
    often = b"(" + b"".join(text(str(i)) + b"h\x00" for i in range(200)) + b"u"
    colliding = [b"\x8a\x10" + ((2**61 - 1) * i).to_bytes(16, "little") for i in range(1, 20_000)]
    vectors = {
        # every instruction that reaches a callable
        "reduce": system,
        "reduce, protocol 0": f"cos\nsystem\n(Vtouch {canary}\ntR".encode(),
        "reduce, posix": call("posix:system", command),
        "reduce, exec": call("builtins:exec", code),
        "reduce, eval": call("builtins:eval", opened),
        "reduce, Python 2's names": old_name("__builtin__:eval") + tuple_of(opened) + b"R",
        "reduce, open": call("builtins:open", text(canary), text("w")),
        "reduce, io.open": call("io:open", text(canary), text("w")),
        "reduce, subprocess": call("subprocess:check_output", words),
        "reduce, runpy": call("runpy:_run_code", code, b"}"),
        "reduce, timeit": call("timeit:timeit", code, text("pass"), name("time:time"), number(1)),
        "reduce, pty": call("pty:spawn", words),
        "reduce, code module": call("code:interact", text("x"), name("builtins:input"), b"}"),
        "reduce, compile": call("builtins:compile", code, text("x"), text("exec")),
        "reduce, import": call("importlib:import_module", text("antigravity")),
        "reduce, __import__": call("builtins:__import__", text("this")),
        "inst": f"(Vtouch {canary}\nios\nsystem\n".encode(),
        "obj": b"(" + old_name("os:system") + command + b"o",
        "newobj": new("subprocess:Popen", words),
        "newobj_ex": name("subprocess:Popen") + tuple_of(text("touch")) + b"}\x92",
        "stack_global from the memo": text("os")
        + b"\x94"
        + text("system")
        + b"\x94h\x00h\x01\x93"
        + command
        + b"\x85R",
        "dotted name": call("builtins:object.__subclasses__"),
        "dotted name into os": call("pathlib:os.system", command),
        "dotted name of an allowed class": call("numpy:ndarray.tofile", text(canary)),
        "dotted name below torch.nn": call("torch.nn:modules.module.os.system", command),
        "dotted name below this package": call("ddpg_ext.ddpg_paper.policies:chain.from_iterable", b"]"),
        **{"ext1": b"\x82\x01", "ext2": b"\x83\x01\x00", "ext4": b"\x84\x01\x00\x00\x00"},
        "persistent id": b"Pos.system\n",
        "binary persistent id": system + b"Q",
        **{"next_buffer": b"\x97", "readonly_buffer": raw(b"x") + b"\x98"},
        # pickles in pickles
        "nested pickle": call("pickle:loads", inner),
        "nested _pickle": call("_pickle:loads", inner),
        "nested cloudpickle": call("cloudpickle:loads", inner),
        "nested in a numpy scalar": call("numpy._core.multiarray:scalar", dtype("O8"), inner),
        "nested numpy.load": call("numpy:load", text(canary)),
        "nested torch.load": call("torch:load", text(canary)),
        "nested SB3 load": call(f"{SB3}save_util:load_from_pkl", text(canary)),
        # allow-listed things as gadgets
        "getattr": call("builtins:getattr", os_system, text("__call__")),
        "getattr of an enum": call("builtins:getattr", name(f"{TRAIN_FREQ}FrequencyUnit"), text("__class__")),
        "object array with a call": array("numpy:ndarray", "O8", b"](" + system + b"e", 1),
        "array of another class": array("numpy:memmap", "u1", raw(b"x"), 1),
        "array larger than its data": array("numpy:ndarray", "u1", raw(b"x"), 2**30, 2**30),
        "array of negative size": from_buffer(b"abcd", "u1", -4),
        "array of pointers from bytes": from_buffer(b"\x01" * 8, "O8", 1),
        "structured dtype": dtype("V8")
        + tuple_of(number(3), text("|"), b"N", tuple_of(text("a")), dict_of(a=system), number(8), number(1), zero)
        + b"b",
        "schedule of a call": made(SCHEDULE, value_schedule=system),
        "schedule of a class": made(SCHEDULE, value_schedule=LINEAR),
        "schedule of os.system": made(SCHEDULE, value_schedule=os_system),
        "noise with a method": noise(_mu=zero, _sigma=zero, reset=LINEAR),
        "noise with a dtype that is code": noise(_mu=zero, _sigma=zero, _dtype=os_system),
        "noise with constructor arguments": new(NORMAL, number(1), number(2)),
        "known class with another's state": new(NORMAL) + tuple_of(b"N", dict_of(_mu=system)) + b"b",
        "state set twice": noise(_mu=zero, _sigma=zero) + dict_of(_mu=zero, __class__=os_system) + b"b",
        "state of a dict": b"}" + dict_of(__class__=os_system) + b"b",
        "class that is called": call("torch.nn.modules.linear:Linear", number(2**20), number(2**20)),
        "policy class that is called": call("stable_baselines3.td3.policies:TD3Policy", b"N", b"N", b"N"),
        "result that is called": call("builtins:getattr", name("builtins:str"), text("format"))
        + tuple_of(command)
        + b"R",
        "deque of a call": call("collections:deque", tuple_of(), number(3)) + system + b"a",
        "deque of negative length": call("collections:deque", tuple_of(), number(-3)),
        "OrderedDict of a call": call("collections:OrderedDict") + b"(" + text("x") + system + b"u",
        "defaultdict": call("collections:defaultdict", os_system),
        "partial": call("functools:partial", os_system, command),
        "attrgetter": call("operator:attrgetter", text("system")),
        "methodcaller": call("operator:methodcaller", text("system"), command),
        "reconstructor": call("copyreg:_reconstructor", os_system, OBJECT, b"N"),
        "reconstructor of an int": call("copyreg:_reconstructor", *[name("builtins:int")] * 2, number(1)),
        "reconstructor of itself": call("copyreg:_reconstructor", name("copyreg:_reconstructor"), OBJECT, b"N"),
        "__newobj__": call("copyreg:__newobj__", name("subprocess:Popen"), text("touch")),
        "codec that is another": call("_codecs:encode", command, text("rot13")),
        "enum member that is none": call(f"{TRAIN_FREQ}FrequencyUnit", system),
        "TrainFreq of a call": new(f"{TRAIN_FREQ}Freq", system, number(1)),
        "space with a call": made("gymnasium.spaces.box:Box", low=system, high=number(1), dtype=text("f4")),
        "space of another kind": made("gymnasium.spaces.graph:Graph", a=number(1)),
        "space of no shape": made("gym.spaces.multi_binary:MultiBinary", n=number(2**31 - 1)),
        "generator that reads elsewhere": generator(text("MT19937"))
        + dict_of(
            bit_generator=text("MT19937"), state=dict_of(key=zero, pos=number(10**9)), has_uint32=zero, uinteger=zero
        )
        + b"b",
        "generator of another name": generator(text("os.system"))
        + dict_of(bit_generator=text("os.system"), state=b"}")
        + b"b",
        "function, stored as code": call(FUNCTION, constant, *unnamed, b")"),
        "function with another closure": call(FUNCTION, returned, *unnamed, tuple_of(cell)),
        "cloudpickle's class": call("cloudpickle.cloudpickle:_make_skeleton_class", name("builtins:type"), text("x")),
        "cloudpickle's module": call("cloudpickle.cloudpickle:subimport", text("this")),
        "state setter as a function": call("cloudpickle.cloudpickle:_function_setstate", os_system, b"}"),
        # hangs and memory
        "list in itself": b"]\x940h\x00h\x00a",
        "dict in itself": b"}\x94" + text("x") + b"h\x00s",
        "tuples in tuples": b")" + b"\x85" * 50_000,
        "lists in lists": b"]" * 3_000 + b"a" * 2_999,
        "billion laughs": b"]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(50)),
        "billion laughs in tuples": b")\x94" + b"".join((b"h" + bytes([i])) * 2 + b"\x86\x94" for i in range(40)),
        "colliding keys": b"}(" + b"".join(key + b"N" for key in colliding) + b"u",
        "colliding members": call("builtins:set", b"](" + b"".join(colliding) + b"e"),
        "huge integer": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        "huge integer in text": b"L" + b"9" * 100_000 + b"L\n",
        "huge promise": b"\x8e" + struct.pack("<Q", 2**62) + b"x",
        "a megabyte, often": megabyte + call("builtins:bytearray", b"h\x00") * 2_000 + b"e",
        "a megabyte as arrays": megabyte
        + call("numpy._core.numeric:_frombuffer", b"h\x00", dtype("u1"), sizes(2**20), text("C")) * 2_000
        + b"e",
        "a megabyte of text": text("x" * 2**20)
        + b"\x940]("
        + call("_codecs:encode", b"h\x00", text("latin1")) * 2_000
        + b"e",
        "huge bytearray": call("builtins:bytearray", number(2**31 - 1)),
        "many instructions": b"]" * 310_000,
        "many names": b"".join(name(f"m{i}:n") + b"0" for i in range(2_000)) + b"N",
        "key that is a tuple": b"}" + tuple_of(number(1), number(2)) + b"Ns",
        "key that is a number with a point": b"}G" + struct.pack(">d", 0.5) + b"Ns",
        "member that is a frozenset": b"\x8f((K\x01\x91\x90",
        "key from the memo": b"\x8a\x09" + (2**64 + 1).to_bytes(9, "little") + b"\x94}h\x00Ns",
        "noise that broadcasts": noise(_mu=zeros(2_000, 1), _sigma=zeros(1, 2_000)),
        "noise in noise that broadcasts": made(
            "ddpg_ext.common.noise:ScheduledActionNoise",
            **{"noise": noise(_mu=zeros(4_000, 1), _sigma=zeros(4_000)), "schedule": b"N", "n_steps": zero},
        ),
        "one noise for a million environments": made(
            f"{SB3}noise:VectorizedActionNoise",
            n_envs=number(1),
            _base_noise=noise(_mu=zero, _sigma=zero) + b"\x94",
            _noises=b"](" + b"h\x00" * 120_000 + b"e",
        ),
        "statistics that broadcast": made(
            f"{SB3}running_mean_std:RunningMeanStd", mean=zeros(2_000, 1), var=zeros(1, 2_000), count=number(1)
        ),
        "space of negative size": made(BITS, n=number(-5)),
        "space of many bits": made(BITS, n=sizes(10**6, 10**6)),
        "space of one part, often": made(DICT, spaces=dict_of(a=made(BITS, n=number(10**6)) + b"\x94") + often),
        "place far away in the memo": b"]r" + struct.pack("<I", 2**32 - 1),
        "calls with text as arguments": text("x" * 2**20)
        + b"\x940"
        + name("collections:OrderedDict")
        + b"\x940"
        + b"h\x01h\x00R0" * 60
        + b"N",
        "classes with bytes as arguments": b"B"
        + struct.pack("<I", 2**20)
        + bytes(2**20)
        + b"\x940"
        + name("collections:OrderedDict")
        + b"\x940"
        + b"h\x01h\x00\x810" * 60
        + b"N",
        "many arguments, often": b"("
        + b"N" * 10_000
        + b"t\x940"
        + name("collections:OrderedDict")
        + b"\x940"
        + b"h\x01h\x00R0" * 500
        + b"N",
        "places that collide": b"N" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(5_000)),
        "a long name, often": text("m" * 2**20)
        + b"\x940"
        + b"".join(b"h\x00" + text(f"n{i}") + b"\x930" for i in range(100))
        + b"N",
        "keys of a Counter": call("collections:Counter", b"](" + b"".join(number(k) for k in (1, 1)) + b"e"),
        "keys of a space": made(DICT, spaces=b"]" + tuple_of(text("a"), zero) + b"a"),
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
    return {key: whole(body) for key, body in vectors.items()}


def broken_pickles(good: bytes) -> dict[str, bytes]:
    """Truncated and altered versions of a pickle that is fine."""
    return {
        **{"empty": b"", "truncated": good[: len(good) // 2], "trailing": good + b"x", "two pickles": good + good},
        **{"not a pickle": b"hello, world", "protocol 200": b"\x80\xc8" + good[2:], "zeros": bytes(1000)},
    }


def bombs() -> dict[str, tuple[str, Any]]:
    """Attributes of a small model, by name, that would take all memory or time. Its policy is "MlpPolicy"."""
    wide, small = [10**6, 10**6], [4, 4]
    classes = (nn.Transformer, nn.LSTM, nn.MultiheadAttention, nn.Linear, nn.Module, nn.CrossEntropyLoss)
    networks: dict[str, dict[str, Any]] = {
        "wide": {"net_arch": wide},
        "wide and ten": {"net_arch": [10] * 10 + wide},
        "actor wide": {"net_arch": {"pi": wide, "qf": small}},
        "critic wide": {"net_arch": {"pi": small, "qf": wide}},
        "wider than any": {"net_arch": [2**62, 2**62]},
        "wider than C knows": {"net_arch": [10**30, 10**30]},
        "deep": {"net_arch": [4] * 10_000},
        "very deep": {"net_arch": [1] * 200_000},
        "deep critic": {"net_arch": {"pi": small, "qf": [4] * 10_000}},
        "another width": {"net_arch": [4, 5]},
        "another depth": {"net_arch": [4, 4, 4]},
        "another action layer": {"action_layer": 1},
        "another normalisation": {"batch_norm": False},
        **{cls.__name__: {"activation_fn": cls} for cls in classes},
        "its extractor's features": {"features_extractor_kwargs": {"features_dim": 10**9}},
        "its optimiser's": {"optimizer_kwargs": {"params": [0] * 10**5}},
    }
    noises = {
        "a long noise": (np.zeros(10**6), np.ones(10**6)),
        "a noise that broadcasts": (np.zeros(9), np.ones((10**5, 1))),
        "a noise that broadcasts far": (np.zeros(10**5), np.ones((10**5, 1))),
        "a noise of lists that broadcasts": ([[0.0]] * 2000, np.ones((1, 2000))),
        "a noise of uneven lists": ([[0.0], [0.0, 1.0]], np.ones(1)),
    }
    many = VectorizedActionNoise(NormalActionNoise(np.zeros(1), np.ones(1)), 1)
    many._noises = many._noises * 10_000
    return {
        **{name: ("policy_kwargs", {"net_arch": small, **kwargs}) for name, kwargs in networks.items()},
        **{name: ("action_noise", NormalActionNoise(*arrays)) for name, arrays in noises.items()},
        "noises of one environment": ("action_noise", many),
        "observations of many kinds": ("observation_space", spaces.Discrete(2**40)),
        "observations of very many kinds": ("observation_space", spaces.Discrete(2**62)),
        "observations of many kinds each": ("observation_space", spaces.MultiDiscrete([2**31 - 1] * 1_000)),
        "many bits": ("observation_space", spaces.MultiBinary(99_999_999)),
        "a long action": ("action_space", spaces.Box(-1, 1, (10**5,))),
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
    bombs: dict[str, dict[str, Any]] = {name: {"features_extractor_kwargs": kw} for name, kw in extractors.items()}
    nature_kwargs = {"features_dim": 10**10, "normalized_image": False}
    bombs["features"] = {"features_extractor_class": NatureCNN, "features_extractor_kwargs": nature_kwargs}
    bombs["flattened"] = {"features_extractor_class": FlattenExtractor, "net_arch": [10**6, 10**6]}
    return {name: {"net_arch": [4, 4], **kwargs} for name, kwargs in bombs.items()}


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


def with_data(good: bytes, **fields: object) -> bytes:
    """A model's zip with other fields; they come first, so that what follows costs no time."""
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        data = json.loads(source.read("data"))
    return edit_zip(good, {"data": json.dumps(fields | {k: v for k, v in data.items() if k not in fields}).encode()})


def with_field(good: bytes, field: str, pickled: bytes) -> bytes:
    """A model's zip with a pickle as one of its fields."""
    return with_data(good, **{field: {":type:": "x", ":serialized:": base64.b64encode(pickled).decode()}})


def zipped(members: dict[Any, bytes | str], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of members by name or ``ZipInfo``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def weights(data_pkl: bytes, **members: bytes) -> bytes:
    """A file in torch's format with this pickle."""
    storages = {f"archive/data/{member}": content for member, content in members.items()}
    return zipped({"archive/data.pkl": data_pkl, "archive/version": "3\n", **storages})


def hostile_zips(good: bytes) -> dict[str, bytes]:
    """Zips that are wrong as zips."""
    link, odd = zipfile.ZipInfo("policy.pth"), zipfile.ZipInfo("x")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    odd.compress_type = zipfile.ZIP_BZIP2
    encrypted = bytearray(good)
    encrypted[good.rfind(b"PK\x01\x02") + 8] |= 1
    slips = ["../../evil", "/etc/evil", "..\\evil", "C:evil", "a/../../evil"]
    flips = [len(good) * i // 25 for i in range(25)]
    return {
        **{f"slip {slip}": zipped({zipfile.ZipInfo(slip): b"x"}) for slip in slips},
        **{f"cut {i}": good[: len(good) * i // 10] for i in range(10)},
        **{f"flip {i}": good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :] for i, at in enumerate(flips)},
        "symbolic link": zipped({link: b"/etc/passwd"}),
        "bzip2": zipped({odd: b"x"}),
        "bomb": zipped({"data": b" " * (200 * 2**20)}, zipfile.ZIP_DEFLATED),
        "bomb in a member": edit_zip(good, {"data": bytes(100 * 2**20)}, zipfile.ZIP_DEFLATED),
        "too many members": zipped({str(i): b"" for i in range(10_500)}),
        "two members of one name": zipped({"data": b"{}", "date": b"{}"}).replace(b"date", b"data"),
        "encrypted": bytes(encrypted),
        "not a zip": b"hello, world",
        "a pickle": pickle.dumps({"a": 1}),
        "an empty zip": zipped({}),
        "a zip of something else": zipped({"readme.txt": b"hello"}),
        "bytes before": b"x" * 7 + good[:-30],
    }


def hostile_yaml(canary: str) -> dict[str, str]:
    system, ordered = (
        f"!!python/object/apply:os.system ['touch {canary}']",
        "!!python/object/apply:collections.OrderedDict",
    )
    return {
        "os.system": system,
        "in a value": f"env: {system}",
        "in the OrderedDict": f"{ordered}\n- - - env\n    - {system}",
        "OrderedDict with state": f"{ordered}\nargs: [[]]\nstate: {system}",
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
        "two OrderedDicts": f"{ordered} [[[a, b]], [[c, d]]]",
        "keys that are none": f"{ordered}\n- - - [a]\n    - b",
        "huge": "a: " + "x" * 2**21,
    }
