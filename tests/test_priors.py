"""Priors beyond what a page should show: official-style pickles, hostile files by the thousand, downloads, full-size figures."""
import collections
import copy
import functools
import http.server
import io
import json
import os
import pickle
import pickletools
import struct
import sys
import threading
import types

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from sr_distill import priors, safe_pickle, stylegan
from sr_distill.autoencoders import SmallConfig, TinyAutoencoder, load_tiny, train_autoencoder
from sr_distill.core import to_tensor
from sr_distill.data import Photos, decode_image
from sr_distill.recipe import RunError, UserError
from sr_distill.safe_pickle import Notes, read_pickle
from sr_distill.stylegan import StyleGANXL, load_stylegan, xl_config

# ---------------------------------------------------------------- pickles as the official code writes them


class Official:
    "Pickles itself as `torch_utils.persistence` does."
    def __init__(self, name, **state):
        self.meta = dict(type="class", version=6, module_src="raise SystemExit('the source was executed')", class_name=name, state=state)
    def __reduce__(self): return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


@pytest.fixture(scope="module")
def official():
    "The names that official pickles use, importable while they are written; calling one fails the test."
    def _reconstruct_persistent_obj(meta): raise AssertionError("a function named in the file was called")
    class EasyDict(dict): pass
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    _reconstruct_persistent_obj.__module__, EasyDict.__module__, EasyDict.__qualname__ = "torch_utils.persistence", "dnnlib.util", "EasyDict"
    made = {"torch_utils": {}, "torch_utils.persistence": {"_reconstruct_persistent_obj": _reconstruct_persistent_obj}, "dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict}}
    with pytest.MonkeyPatch.context() as patch:
        for name, content in made.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
            parent, _, child = name.rpartition(".")
            if parent: setattr(sys.modules[parent], child, module)   # dill looks there
        yield EasyDict


def module(name, tensors=None, children=None, **attributes):
    tensors = tensors or {}
    buffers = ("filter", "ema", "avg", "freqs", "phases", "transform")
    return Official(name, training=False, _non_persistent_buffers_set=set(), _backward_hooks=collections.OrderedDict(), _modules=collections.OrderedDict(children or {}),
                    _parameters=collections.OrderedDict((k, nn.Parameter(v)) for k, v in tensors.items() if not k.endswith(buffers)),
                    _buffers=collections.OrderedDict((k, v) for k, v in tensors.items() if k.endswith(buffers)), **attributes)


def generator(config, weights):
    "An object tree with the class names and attributes of the official generator."
    def below(prefix): return {k[len(prefix):]: v for k, v in weights.items() if k.startswith(prefix) and "." not in k[len(prefix):]}
    def dense(prefix, rate=1.0): return module("FullyConnectedLayer", below(prefix), activation="lrelu", bias_gain=rate, in_features=1)
    def layer(s):
        p, arrays = f"synthesis.{s['name']}.", ("in_size", "out_size")
        plain = {k: np.array(v) if k in arrays else np.float64(v) if isinstance(v, float) else v for k, v in s.items() if k != "name"}
        return module("SynthesisLayer", below(p), {"affine": dense(p + "affine.")}, **plain)
    mapping = {f"fc{k}": dense(f"mapping.fc{k}.", config["lr_multiplier"]) for k in range(config["mapping_layers"])}
    if config["c_dim"]:
        embed = nn.Embedding(*weights["mapping.embed.weight"].shape)
        embed.weight.data = weights["mapping.embed.weight"]
        mapping |= {"embed": embed, "embed_proj": dense("mapping.embed_proj.")}
    m = module("MappingNetwork", below("mapping."), mapping, z_dim=config["z_dim"], c_dim=config["c_dim"], w_dim=config["w_dim"], num_layers=config["mapping_layers"], w_avg_beta=0.998)
    layers = {s["name"]: layer(s) for s in config["layers"]}
    entry = module("SynthesisInput", below("synthesis.input."), {"affine": dense("synthesis.input.affine.")}, size=np.array([36, 36]), bandwidth=2)
    s = module("SynthesisNetwork", {}, {"input": entry, **layers}, output_scale=config["output_scale"], layer_names=list(layers))
    return module("Generator", {}, {"mapping": m, "synthesis": s}, z_dim=config["z_dim"], img_resolution=config["img_resolution"])


def snapshot(official, g, **more):
    return official(G=None, D=None, G_ema=g, augment_pipe=None, training_set_kwargs=official(class_name="dataset", path="x.zip"), **more)


@pytest.fixture(scope="module")
def reference(shared):
    def get(name):
        folder = shared("reference/stylegan_xl")
        return json.loads((folder / f"{name}.config.json").read_text()), *(load_file(folder / f"{name}.{part}.safetensors") for part in ("weights", "io"))
    return get


@pytest.mark.parametrize("name", ["stem16", "super32"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_official_pickle_gives_the_reference_numbers(name, protocol, reference, official, tmp_path):
    config, weights, io_ = reference(name)
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(snapshot(official, generator(config, weights)), protocol))
    g = StyleGANXL.load(path)
    assert set(g.state_dict()) == set(weights)
    with torch.no_grad():
        assert (g.map(io_["z"], io_["class_index"]) - io_["ws"]).abs().max() < 1e-4
        assert (g.map(io_["z"], io_["class_index"], psi=0.5) - io_["ws_truncated_psi0.5"]).abs().max() < 1e-4
        for k in range(g.num_ws):
            assert (g.features(io_["ws"], k) - io_[f"feature.{k:02d}"]).abs().max() < 1e-4
            assert (g.from_features(io_[f"feature.{k:02d}"], io_["ws"], k) - io_["image"]).abs().max() < 1e-4
    g.save(tmp_path / "g.safetensors")
    assert load_stylegan(tmp_path / "g.safetensors").identity == g.identity


@pytest.mark.parametrize("radial", [False, True])
def test_stylegan3_and_ffhq_kind(official, tmp_path, radial):
    "No classes, one mean w, and (StyleGAN3-R) 1×1 convolutions with 2-D filters."
    config = xl_config(32, c_dim=0, layers=(4, 4), channel_max=6)
    if radial: config["layers"] = [s | dict(conv_kernel=1, padding=[p + s["up_factor"] * (0 if s["is_torgb"] else 1) for p in s["padding"]]) for s in config["layers"]]
    g = StyleGANXL(config)
    weights = dict(g.state_dict())
    if radial: weights |= {k: torch.outer(v, v) for k, v in weights.items() if k.endswith("down_filter")}
    path = tmp_path / "ffhq.pkl"
    path.write_bytes(pickle.dumps(snapshot(official, generator(config, weights))))
    loaded = load_stylegan(path)
    z = torch.randn(2, 64)
    assert loaded.mapping.w_avg.shape == (512,) and loaded.config["c_dim"] == 0
    assert loaded.decode(loaded.map(z, psi=0.7)).allclose(g.decode(g.map(z, psi=0.7)), atol=1e-5)


def test_pickle_that_fits_no_generator(official, tmp_path, reference):
    config, weights, _ = reference("stem16")
    path = tmp_path / "x.pkl"
    damaged = [module("Generator"), module("Generator", {}, {"mapping": module("M"), "synthesis": module("S")}), {"a": 1}, None,
               generator(config | dict(layers=config["layers"][:6] + config["layers"][7:]), weights), generator(config, weights | {"mapping.fc0.weight": torch.zeros(5, 5)})]
    for g in damaged:
        path.write_bytes(pickle.dumps(snapshot(official, g)))
        with pytest.raises(UserError, match="x.pkl"): load_stylegan(path)
    path.write_bytes(pickle.dumps({"G": 1}))
    with pytest.raises(UserError, match="G_ema"): load_stylegan(path)


class Trap:
    def __init__(self, *call, state=None): self.call, self.state = call, state
    def __reduce__(self): return self.call[0], self.call[1:], self.state


# ---- training snapshots: more than a generator, in the spelling of dill

def flexible(self, x): return x   # a function that is bound to a discriminator

class Critic(nn.Module):
    "A discriminator: a class of the training code, known to the file by its import path alone."
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 2, 3), nn.LeakyReLU(.2))
        self.flexible = types.MethodType(flexible, self)
        self.register_forward_hook(flexible)

class Imported:
    def __init__(self, name): self.name = name
    def __reduce__(self): return sys.modules["dill._dill"]._import_module, (self.name,)

class Spelling(pickle.Pickler):
    "Arrays as dill spells them: 0.3.4 asks a module for the function, 0.4.1 has a function of its own; 0.3.5.1 is like pickle."
    version = ""
    def reducer_override(self, x):
        dill = sys.modules["dill._dill"]
        if self.version == "0.4.1" and isinstance(x, np.ndarray): return dill._create_array, (*x.__reduce__(), None)
        if self.version == "0.3.4" and getattr(x, "__name__", "") == "_reconstruct": return dill._get_attr, (Imported(x.__module__), "_reconstruct")
        return NotImplemented

@pytest.fixture
def dill(monkeypatch):
    "`dill(x, version)` as that version writes it, with its functions as stand-ins that must never be called."
    def never(*_): raise AssertionError("a function named in the file was called")
    made = types.ModuleType("dill._dill")
    for name in ("_create_array", "_get_attr", "_import_module"):
        function = types.FunctionType(never.__code__, globals(), name)
        function.__module__, function.__qualname__ = "dill._dill", name
        setattr(made, name, function)
    def dumps(x, version):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "dill", types.ModuleType("dill")), patch.setitem(sys.modules, "dill._dill", made)
            out = io.BytesIO()
            pickler = Spelling(out, 4)
            pickler.version = version
            pickler.dump(x)
        return out.getvalue()
    return dumps

def real_dill(x, version):
    dill = pytest.importorskip("dill", reason="dill is missing (pip install dill)")
    return dill.dumps(x)

@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return StyleGANXL(xl_config(16, c_dim=5, layers=(4, 4), channel_max=6))

@pytest.mark.parametrize("version", ["0.3.4", "0.3.5.1", "0.4.1"])
def test_a_training_snapshot_is_read_past_its_discriminator(version, dill, official, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    company = dict(G=None, D=Critic(), G_ema=generator(small.config, small.state_dict()), augment_pipe=module("AugmentPipe", {"p": torch.ones(1)}),
                   kwargs=dict(dtype=torch.float32, device=torch.device("cuda:0"), random=np.random.RandomState(0), trap=Trap(os.system, "touch executed")))
    (tmp_path / "network.pkl").write_bytes(dill(company, version))
    assert load_stylegan(tmp_path / "network.pkl").identity == small.identity
    assert not (tmp_path / "executed").exists()
    with pytest.raises(UserError, match="its D needs .*Critic.*nothing in it was run"): read_pickle(tmp_path / "network.pkl", "D")
    with pytest.raises(UserError, match="no entry 'H'; it has G, D, G_ema"): read_pickle(tmp_path / "network.pkl", "H")

def test_a_snapshot_by_the_dill_that_is_here(official, small, tmp_path):
    (tmp_path / "network.pkl").write_bytes(real_dill(dict(D=Critic(), G_ema=generator(small.config, small.state_dict()), dtype=torch.float32), ""))
    assert load_stylegan(tmp_path / "network.pkl").identity == small.identity

@pytest.mark.parametrize("how", ["a call", "an attribute", "an odd instruction"])
def test_what_the_generator_itself_needs_is_refused_by_name(how, official, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    g = generator(small.config, small.state_dict())
    evil = Trap(os.system, "touch executed")
    if how == "a call": g.meta["state"]["z_dim"] = evil
    if how == "an attribute": g.meta["state"]["_modules"]["mapping"].meta["state"]["w_dim"] = Trap(eval, "1")
    content = pickle.dumps(dict(G_ema=g))
    if how == "an odd instruction": content = b"\x80\x02}U\x05G_ema\x82\x01s."
    (tmp_path / "network.pkl").write_bytes(content)
    with pytest.raises(UserError, match={"a call": "its G_ema needs .*system", "an attribute": "its G_ema needs .*eval", "an odd instruction": "its G_ema asks for the instruction EXT1"}[how]) as e:
        load_stylegan(tmp_path / "network.pkl")
    assert "official source" not in str(e.value) and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("classes", [0, 5])
def test_official_files_keep_an_embedding_of_a_thousand_classes(classes, official, tmp_path):
    "Whatever the generator knows: FFHQ and Pokémon know no classes, and somebody's own photos a few."
    g = StyleGANXL(xl_config(16, c_dim=classes, layers=(4, 4), channel_max=6))
    embedding = nn.Embedding(1000, 320)
    if classes: embedding.weight.data[:classes] = g.mapping.embed.weight
    whole = generator(g.config, g.state_dict())
    whole.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]["embed"] = embedding
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(snapshot(official, whole)))
    loaded = load_stylegan(tmp_path / "network.pkl")
    assert loaded.identity == g.identity
    loaded.save(tmp_path / "g.safetensors")
    assert load_stylegan(tmp_path / "g.safetensors").identity == g.identity


# ---------------------------------------------------------------- hostile files


def hostile():
    yield "os.system", pickle.dumps(Trap(os.system, "touch executed"))
    yield "eval", pickle.dumps({"G_ema": Trap(eval, "open('executed', 'w')")})
    yield "nested", pickle.dumps({"G_ema": [[{"a": (Trap(exec, "open('executed', 'w')"),)}]]})
    yield "beside the generator", pickle.dumps({"G_ema": 1, "extra": Trap(os.system, "touch executed")})
    yield "import", pickle.dumps(Trap(__import__, "antigravity"))
    yield "getattr", b"c__builtin__\ngetattr\n(c__builtin__\nobject\nS'__subclasses__'\ntR."
    yield "torch.load", b"ctorch.serialization\nload\n(S'x'\ntR."
    yield "dotted name", b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93."
    yield "dotted attribute of an allowed module", b"\x80\x04\x8c\x0btorch._utils\x8c\x12_rebuild_tensor_v2.__globals__\x93."
    yield "name built on the stack", b"\x80\x04\x8c\x02o\x8c\x01s\x8c\x06system\x93."
    yield "extension code", b"\x80\x02\x82\x01."
    yield "old instance", b"(S'touch executed'\nios\nsystem\n."
    yield "old object", b"(cos\nsystem\nS'touch executed'\no."
    yield "persistent id", b"Pabc\n."
    yield "call of a string", b"\x80\x02U\x02os)R."
    yield "call of a call", b"\x80\x02ccollections\nOrderedDict\n)R)R."
    yield "state into a dict", b"\x80\x02}}b."
    yield "state into a name", b"\x80\x02ccollections\nOrderedDict\n}b."
    yield "huge bytes", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x."
    yield "huge integer", b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x."
    yield "huge memo", b"\x80\x02Nr\xff\xff\xff\xff0h\x01."
    yield "stack underflow", b"\x80\x020."
    yield "no mark", b"\x80\x02t."
    yield "missing memo", b"\x80\x02h\x07."
    yield "unhashable", b"\x80\x02}]Ns."
    yield "number in digits", b"I" + b"9" * 100_000 + b"\n."
    yield "deep", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    yield "endless", b"\x80\x02]q\x00h\x00a."
    yield "doubling", b"\x80\x02]" + b"".join(b"q" + bytes([k]) + b"]h" + bytes([k]) + b"ah" + bytes([k]) + b"a" for k in range(90)) + b"."
    def double(many): return b"(K\x01K\x01tq\x00" + b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86q" + bytes([k + 1]) for k in range(many))   # the last is a tuple of 2^many
    yield "endless text as a name", b"\x80\x04" + double(90) + b"\x8c\x01x\x93."
    yield "endless key of a dict", b"\x80\x04" + double(90) + b"}h" + bytes([90]) + b"K\x01s."
    yield "endless keys of an old dict", b"\x80\x04(" + double(90) + b"K\x01d."
    yield "endless entry of a set", b"\x80\x04\x8f(" + double(90) + b"\x90."
    yield "endless entry of a frozen set", b"\x80\x04(" + double(90) + b"\x91."
    yield "array of objects", b"\x80\x02cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R."
    yield "tensor without bytes", b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x05\x85K\x01\x85tR."
    yield "storage that is no storage", b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x03abc\x85R."
    yield "device on the loose", b"\x80\x02ctorch\nFloatStorage\n."


@pytest.mark.parametrize("content", [pytest.param(c, id=n) for n, c in hostile()])
def test_hostile_pickles_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="evil.pkl") as e: read_pickle(path)
    with pytest.raises(UserError): load_stylegan(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pkl"] and "\n" not in str(e.value)


def test_parts_in_two_places_are_refused(official, small, tmp_path):
    "Modules that each hold the next one twice would be an endless list of names."
    part = module("Part")
    for _ in range(10): part = module("Part", {}, {"a": part, "b": part})
    whole = generator(small.config, small.state_dict())
    whole.meta["state"]["_modules"]["more"] = part
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(snapshot(official, whole)))
    with pytest.raises(UserError, match="x.pkl: its G_ema holds its part more.* in two places"): load_stylegan(tmp_path / "x.pkl")


def test_a_setting_of_nested_lists_is_none(official, small, tmp_path):
    endless = [1]
    for _ in range(40): endless = [endless, endless]
    whole = generator(small.config, small.state_dict())
    name = small.config["layers"][0]["name"]
    whole.meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"][name].meta["state"]["padding"] = endless
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(snapshot(official, whole)))
    with pytest.raises(UserError, match="x.pkl: its G_ema is no StyleGAN.*padding"): load_stylegan(tmp_path / "x.pkl")


def test_a_storage_may_not_lie():
    blob = bytearray(Notes().read(io.BytesIO(pickle.dumps(torch.arange(10.)))).args[0].args[0])
    assert safe_pickle._storage(bytes(blob)).equal(torch.arange(10.))
    for cut in (blob[:-4], blob + b"more", blob[:-48] + struct.pack("<q", 1 << 60) + blob[-40:]):
        with pytest.raises((UserError, struct.error)): safe_pickle._storage(bytes(cut))
    inner = b"".join(pickle.dumps(x, 2) for x in (0x1950a86a20f9469cfc6c, 1001, {}, Trap(os.system, "touch executed"), []))
    with pytest.raises(UserError, match="system"): safe_pickle._storage(inner)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_out_as_they_went_in(dtype, tmp_path):
    t = (torch.randn(4, 6) * 9).to(dtype)
    values = {"whole": t, "view": t[1:, ::2], "turned": t.T, "empty": t[:0], "scalar": t[0, 0], "parameter": t, "array": t.numpy(), "number": np.float64(2.5)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(values))
    back = read_pickle(tmp_path / "a.pkl")
    for k, v in values.items(): assert torch.equal(torch.as_tensor(back[k]), torch.as_tensor(v)) and torch.as_tensor(back[k]).dtype == torch.as_tensor(v).dtype, k


@pytest.fixture(scope="module")
def small_pickle(official):
    torch.manual_seed(0)
    return pickle.dumps({"t": torch.randn(3, 4), "o": module("A", {"weight": torch.randn(2), "w_avg": torch.ones(1)}, {"b": nn.Embedding(2, 2)}, size=np.array([3, 4])), "n": [1, 2.5, "x", None, (True,)]})


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_end_well(small_pickle, tmp_path, monkeypatch, data):
    "Any bytes give either data or one `UserError`; nothing else, and no call."
    content = bytearray(small_pickle)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "remove"])):
            case "set": content[at] = data.draw(st.integers(0, 255))
            case "cut": content = content[:max(at, 1)]
            case "insert": content[at:at] = data.draw(st.binary(max_size=9))
            case "remove": del content[at:at + data.draw(st.integers(1, 9))]
        if not content: content = bytearray(b".")
    path = tmp_path / "m.pkl"
    path.write_bytes(bytes(content))
    try: read_pickle(path)
    except UserError as e: assert "m.pkl" in str(e)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), ops=st.lists(st.sampled_from([o.code.encode("latin1") for o in pickletools.opcodes]), max_size=60))
def test_random_instructions_end_well(content, ops, tmp_path):
    path = tmp_path / "r.pkl"
    for data in (b"".join(ops) + content, b"\x80\x02" + b"".join(ops) + b"."):
        path.write_bytes(data)
        try: read_pickle(path)
        except UserError: pass


def test_plain_data_like_pickle():
    values = {"a": [1, -2, 1 << 200, 2.5, None, True], b"x": ("é", {1, 2}, frozenset([3]), [[]] * 2), 5: {}}
    for protocol in (4, 5): assert Notes().read(io.BytesIO(pickle.dumps(values, protocol))) == pickle.loads(pickle.dumps(values, protocol))


# ---------------------------------------------------------------- the generator


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_batch_never_mixes_and_chunks_change_nothing(monkeypatch):
    g = StyleGANXL(xl_config(32, c_dim=0, layers=(4, 4), channel_max=8)).double()
    ws = torch.randn(3, g.num_ws, 512, dtype=torch.float64, requires_grad=True)
    def gradient(x): return torch.autograd.grad(g.synthesize(x).pow(3).sum(), x)[0]
    whole = gradient(ws)
    for n in range(3): assert (whole[n] - gradient(ws[n:n+1])[0]).norm() / whole[n].norm() < 1e-9
    monkeypatch.setattr(stylegan, "PART", 3000)
    assert (gradient(ws) - whole).norm() / whole.norm() < 1e-9


@pytest.mark.parametrize("inputs, outputs, side, tiles", [(3, 5, 4, 1024), (100, 130, 17, 8), (7, 600, 21, 12), (96, 96, 30, 1)])
def test_a_convolution_in_tiles_is_a_convolution(inputs, outputs, side, tiles, monkeypatch):
    monkeypatch.setattr(stylegan, "TILES", tiles)   # bands of few rows, the last one smaller
    x, weight = torch.randn(2, inputs, side, side + 3, dtype=torch.float64), torch.randn(outputs, inputs, 3, 3, dtype=torch.float64)
    for padding in range(3):
        exact = torch.nn.functional.conv2d(x, weight, padding=padding)
        ours = stylegan.conv_in_tiles(x, weight, padding)
        assert ours.allclose(exact, atol=1e-9) and stylegan.conv_in_tiles(x[1:], weight, padding).equal(ours[1:])
        off = stylegan.conv_in_tiles(x.float(), weight.float(), padding) - exact
        assert off.norm() < 1e-5 * exact.norm()


def test_wide_layers_give_the_same_bits_on_any_cores(threads):
    "Image and gradient; wide enough for tiles, and equal to a generator in float64, which takes none."
    g = StyleGANXL(xl_config(16, c_dim=0, layers=(3, 3), channel_max=stylegan.WIDE)).eval().requires_grad_(False)
    ws = g.map(torch.randn(2, 64)).clone()
    def run(g, ws):
        leaf = ws.clone().requires_grad_()
        image = g.synthesize(leaf)
        return image.detach(), torch.autograd.grad(image.square().sum(), leaf)[0]
    runs = []
    for n in (1, 2, 3):
        threads(n)
        runs.append(run(g, ws))
    assert all(a.equal(b) for other in runs[1:] for a, b in zip(runs[0], other))
    for ours, exact in zip(runs[0], run(g.double(), ws.double())): assert (ours - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("layer", [-1, 12, 99])
def test_layer_out_of_range(layer):
    g = StyleGANXL(xl_config(16, c_dim=0, channel_max=2))
    ws = torch.zeros(1, g.num_ws, 512)
    with pytest.raises(UserError, match="0 to 11"): g.features(ws, layer)
    with pytest.raises(UserError, match="out of range"): g.from_features(torch.zeros(1, 2, 36, 36), ws, layer)


def test_generators_of_the_same_weights_and_another_scale_are_two():
    config = xl_config(16, c_dim=0, layers=(3, 3), channel_max=2)
    one, other = StyleGANXL(config), StyleGANXL({**config, "output_scale": 2 * config["output_scale"]})
    other.load_state_dict(one.state_dict())
    assert one.identity != other.identity and one.identity == copy.deepcopy(one).double().identity


def test_class_is_needed_and_checked():
    g = StyleGANXL(xl_config(16, c_dim=5, layers=(3, 3), channel_max=2))
    with pytest.raises(UserError, match="class"): g.map(torch.zeros(1, 64))
    with pytest.raises(UserError, match="0 to 4"): g.map(torch.zeros(1, 64), torch.tensor([5]))


@pytest.mark.cuda
def test_cuda_equals_cpu():
    g = StyleGANXL(xl_config(64, c_dim=0, channel_max=32)).double()
    ws = torch.randn(2, g.num_ws, 512, dtype=torch.float64)
    assert g.synthesize(ws).allclose(g.cuda().synthesize(ws.cuda()).cpu(), atol=1e-9)


# ---------------------------------------------------------------- autoencoders and downloads


@pytest.mark.parametrize("name, expected", [("monarch", 32.87), ("baboon", 21.81)])
def test_taef2_round_trip(name, expected, shared):
    model = load_tiny(shared("data/weights/taef2_encoder.pth"))
    u8 = decode_image(shared(f"data/set14/{name}.png"))
    x = to_tensor(u8[:u8.shape[0] // 8 * 8, :u8.shape[1] // 8 * 8])
    with torch.no_grad(): y = model.decode(model.encode(x))
    assert abs(-10 * (y - x).square().mean().log10() - expected) < 0.1
    assert sum(p.numel() for p in model.encoder.parameters()) > 1_300_000


@pytest.mark.parametrize("channels", [4, 16])
def test_diffusers_layout(channels, tmp_path):
    from sr_distill.core import import_torchvision
    import_torchvision()
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderTiny(latent_channels=channels).eval()
    theirs.save_pretrained(tmp_path)
    ours, x = load_tiny(tmp_path), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        z = theirs.encode(x * 2 - 1).latents
        assert ours.encode(x).allclose(z, atol=1e-5) and ours.decoder(z).allclose(theirs.decode(z).sample / 2 + 0.5, atol=1e-5)


def test_embedded_prior_is_a_function_of_photos_and_seed():
    photos = Photos.open("embedded").subset([0, 1])
    config = SmallConfig(steps=3, crops=40, batch=4, width=8)
    a, b, c = train_autoencoder(photos, config), train_autoencoder(photos, config), train_autoencoder(photos, SmallConfig(**{**vars(config), "seed": 1}))
    assert a.identity == b.identity != c.identity
    tiny = Photos.from_arrays(["small"], [np.zeros((40, 70, 3), np.uint8)])
    with pytest.raises(UserError, match="small"): train_autoencoder(tiny, config)


@pytest.fixture
def site(tmp_path):
    "A web server on this machine; (folder, address)."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    folder = tmp_path / "site"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_generator_by_name(site, tmp_path, monkeypatch, official):
    folder, address = site
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    g = StyleGANXL(xl_config(16, c_dim=0, layers=(3, 3), channel_max=4))
    (folder / "tiny.pkl").write_bytes(pickle.dumps(snapshot(official, generator(g.config, g.state_dict()))))
    monkeypatch.setitem(priors.STYLEGANS, "tiny", (f"{address}/tiny.pkl", "tiny.pkl", None))
    assert priors._stylegan_by_name("tiny").identity == g.identity
    (folder / "tiny.pkl").unlink()
    assert priors._stylegan_by_name("tiny").identity == g.identity   # kept, as safetensors only
    assert [p.suffix for p in (tmp_path / "cache/priors").iterdir() if p.name[0] != "."] == [".safetensors"]
    (folder / "imagenet512.pkl").write_bytes(pickle.dumps(snapshot(official, generator(g.config, g.state_dict()))))
    monkeypatch.setitem(priors.STYLEGANS, "stylegan-xl-imagenet512", (f"{address}/imagenet512.pkl", "imagenet512.pkl", None))
    with pytest.raises(UserError, match="37"): priors.load_prior("stylegan-xl-imagenet512")


def test_wrong_checksum_and_nobody_there(site, tmp_path, monkeypatch):
    folder, address = site
    (folder / "w.bin").write_bytes(b"x" * 5000)
    with pytest.raises(RunError, match="sha256"): priors.fetch_weights(f"{address}/w.bin", tmp_path / "w.bin", "0" * 64)
    assert not list(tmp_path.glob("w.bin*"))
    with pytest.raises(UserError, match="cannot be reached"): priors.fetch_weights("http://127.0.0.1:9/w.bin", tmp_path / "w.bin")


def test_broken_download_goes_on(site, tmp_path):
    folder, address = site
    (folder / "w.bin").write_bytes(bytes(range(200)) * 100)
    (tmp_path / "w.bin.part").write_bytes((folder / "w.bin").read_bytes()[:777])   # this server knows no ranges: it starts again
    assert priors.fetch_weights(f"{address}/w.bin", tmp_path / "w.bin").read_bytes() == (folder / "w.bin").read_bytes()


@pytest.mark.parametrize("name", ["embedded", "no-such-prior", "kl:no/such"])
def test_names_that_give_no_prior(name):
    with pytest.raises(UserError): priors.load_prior(name)


def test_all_tiny_names_are_tiny_autoencoders():
    assert set(priors.TINY) >= {"taesd", "taesdxl", "taesd3", "taef1", "taef2"}
    for name, channels in {"taesd": 4, "taef1": 16}.items(): assert TinyAutoencoder(channels, name=name).latent_shape(64) == (channels, 8, 8)
