"""Exit codes and messages: one sentence that names the thing and the remedy, no traceback, nothing lost."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sr_distill.cli import main
from sr_distill.sets import DistilledSet

TINY = ["--size", "24", "--steps", "2", "--networks", "1", "--real", "2", "--pool", "random", "--held-out", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "ab": Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (60, 72, 3), dtype=np.uint8)).save(tmp_path / f"photos/{name}.png")
    return tmp_path / "photos"

@pytest.fixture
def call(capsys):
    def run(*args):
        code = main([str(a) for a in args])
        return code, *capsys.readouterr()
    return run

def refused(answer, *words, code=2):
    "The call failed with one sentence that has all these words in it."
    found, _, err = answer
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("sr_distill: ") or "Traceback" in line]
    assert found == code and len(lines) == 1 and "Traceback" not in err, answer
    for word in words: assert word in lines[0], lines[0]


def test_help_needs_no_torch():
    r = subprocess.run([sys.executable, "-c", "import sys, sr_distill.cli as c; c.main(['distill', '--help']); sys.exit('torch' in sys.modules)"], capture_output=True, text=True)
    assert r.returncode == 0 and "--init" in r.stdout


@pytest.mark.parametrize("command", ["demo", "distill", "train", "render", "evaluate", "study", "compare", "inspect"])
def test_every_command_has_help(call, command): assert call(command, "--help")[0] == 0


def test_labels_by_a_teacher(call, photos):
    teach = [*TINY, "--labels", "teacher", "--teacher-steps", "3"]
    assert call("distill", photos, "set", *teach)[0] == 0 and "A teacher, edsr, then redrew" in open("set/README.md").read()
    assert call("train", "set", "model", "--model", "edsr", "--depth", 1, "--width", 8, "--steps", 3, "--patch", 16, "--batch", 2, "--device", "cpu")[0] == 0
    assert call("distill", photos, "next", *TINY, "--labels", "model")[0] == 0                # a student teaches
    refused(call("distill", photos, "other", *TINY, "--labels", "nowhere"), "nowhere", "no such folder")
    refused(call("distill", photos, "other", *TINY, "--labels", "model", "--scale", "4"), "enlarges ×2", "make them equal")
    assert not os.path.exists("other/.run/pool.pt")                                           # said before the work


def test_the_whole_way(call, photos):
    assert call("distill", photos, "set", *TINY)[0] == 0
    assert call("distill", photos, "set", *TINY)[0] == 0                                    # done already
    assert call("inspect", "set")[1].startswith("valid distilled set, 2 images of 24²")
    train = ["train", "set", "model", "--model", "edsr", "--depth", 1, "--width", 8, "--steps", 3, "--patch", 16, "--batch", 2, "--device", "cpu"]
    assert call(*train)[0] == 0
    assert {"model.safetensors", "config.json", "history.csv"} <= set(os.listdir("model"))
    assert call("inspect", "model")[1].startswith("valid trained model")
    code, out, _ = call("evaluate", "model", photos, "--json", "scores.json", "--lpips", "none")
    scores = json.load(open("scores.json"))
    assert code == 0 and set(scores) == {"dataset", "scale", "border", "lr_source", "lpips_net", "mean", "bicubic", "gain", "notes", "images"} and "PSNR" in out
    assert set(scores["mean"]) == {"psnr_y", "psnr_rgb", "ssim_y", "ssim_rgb", "lpips"} and len(scores["images"]) == 2
    assert call("distill", photos, "other", *TINY, "--pool", "model", "--network", "edsr")[0] == 2    # another depth than the recipe's network


def test_missing_and_empty_folders(call, tmp_path):
    refused(call("distill", "nowhere", "out"), "nowhere", "give a folder")
    (tmp_path / "empty").mkdir()
    refused(call("distill", "empty", "out"), "empty")
    refused(call("train", "nowhere", "out"), "nowhere")
    refused(call("evaluate", "bicubic", "nowhere"), "nowhere")
    refused(call("evaluate", "nowhere", "empty"), "nowhere")
    refused(call("inspect", "nowhere"), "nowhere")
    assert not (tmp_path / "out").exists()


def test_bad_photos(call, photos):
    (photos / "torn.png").write_bytes((photos / "a.png").read_bytes()[:2000])
    (photos / "text.jpg").write_text("no image")
    refused(call("distill", photos, "out", *TINY), "torn.png", "text.jpg", "--skip-bad")
    code, _, err = call("distill", photos, "out", *TINY, "--skip-bad")
    assert code == 0 and len(os.listdir("out/images")) == 2


def test_photo_smaller_than_the_patch(call, photos):
    refused(call("distill", photos, "out", "--size", 64), "a.png", "smaller")
    refused(call("train", photos, "out", "--patch", 96, "--device", "cpu"), "--patch")


def test_unknown_names_and_numbers(call, photos):
    for args in (["--init", "best"], ["--size", "sixty"], ["--colour", "red"]): assert call("distill", photos, "out", *args)[0] == 2
    refused(call("distill", photos, "out", "--size", 25), "--size 25", "multiple")
    refused(call("distill", photos, "out", "--pool", "nowhere", "--size", 24), "nowhere")


def test_a_small_budget_shrinks_photos_unless_you_choose_the_rest(call, photos):
    "One image of 16² of four photos of 60²: the recommended recipe has room for one image, a recipe of your own for none."
    pixels = sum(Image.open(file).size[0]**2 for file in photos.iterdir())
    settings = "--size", 16, "--budget", f"{100 * 16**2 * 1.5 / pixels:.3f}", "--device", "cpu"
    code, said, *_ = call("distill", photos, photos / "../small", *settings)
    assert code == 0, said
    made = DistilledSet.load(photos / "../small").recipe
    assert (made.init, made.grouping) == ("downscaled", "all")
    refused(call("distill", photos, photos / "../own", "--init", "hardest", *settings), "--budget", "smaller --size")

@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a CUDA device")
def test_missing_device(call, photos): refused(call("distill", photos, "out", *TINY[:-1], "cuda"), "cuda", "--device auto")


def test_a_file_of_scores_takes_no_other_place(call, photos, monkeypatch):
    judge = lambda file: call("evaluate", "bicubic", photos, "--lpips", "none", "--json", file)
    refused(judge(photos / "nowhere/x.json"), "no folder", "make it")
    (photos / "mine.toml").write_text("photos = 3")
    refused(judge(photos / "mine.toml"), "holds no scores", "another name")
    assert [judge(photos / "x.json")[0] for _ in range(2)] == [0, 0] and (photos / "mine.toml").read_text() == "photos = 3"
    before, stored = (photos / "x.json").read_text(), []
    monkeypatch.setattr("click.echo", lambda *args, **how: stored.append((photos / "x.json").exists()))
    (photos / "x.json").unlink()
    assert judge(photos / "x.json")[0] == 0 and stored == [True] and (photos / "x.json").read_text() == before   # stored first, told then

def test_help_says_what_a_model_chooses(call):
    text = " ".join(call("train", "--help")[1].split())
    assert "patches per step [by model]" in text and "side of an HR training patch in pixels [48]" in text

def test_an_interrupted_run_says_that_it_is_one(call, photos):
    from sr_distill.train import train
    class Stop(Exception): pass
    def stop(step, *rest):
        if step == 3: raise Stop
    from sr_distill.data import Photos
    from sr_distill.models import make_model
    from sr_distill.recipe import RunError, TrainConfig
    with pytest.raises(Stop): train(make_model("edsr", 2, 1, 8), Photos.open(photos), TrainConfig("edsr", steps=9, patch=16, checkpoint=2), "model", callback=stop)
    assert "unfinished training, 2 of 9 steps" in call("inspect", "model")[1]
    refused(call("distill", photos, "set", *TINY, "--ipc", "9999"), "--ipc 9999")
    assert not os.path.exists("set")
    def full(*args): raise RunError("the disk is full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sr_distill.plan.start_images", full)
        assert call("distill", photos, "set", *TINY)[0] == 1
    assert "unfinished distillation, 0 of 2 steps" in call("inspect", "set")[1]
    refused(call("train", "set", "m2"), "unfinished distillation")
    assert call("distill", photos, "set", *TINY, "--ipc", "2")[0] == 0 and "4 images" in call("inspect", "set")[1]   # what was refused has not taken the folder
    assert call("train", "set", "m2", "--model", "edsr", "--depth", "1", "--width", "8", "--steps", "2", "--patch", "16")[0] == 0 and "2 steps, seed 0, on 4 images of set" in call("inspect", "m2")[1]

def test_options_that_would_do_nothing(call, photos):
    refused(call("train", photos, "m", "--validate", "5"), "--validate 5", "--val PHOTOS")
    refused(call("distill", photos, "out", *TINY, "--space", "latent", "--lr", ".5"), "--lr 0.5", "--lr-latents")
    refused(call("distill", photos, "out", *TINY, "--labels", "techer"), "--labels 'techer'", "own, teacher")


def test_folder_of_another_recipe(call, photos):
    assert call("distill", photos, "out", *TINY)[0] == 0
    before = open("out/manifest.json").read()
    refused(call("distill", photos, "out", *TINY, "--lr", "0.5"), "--lr 0.01", "--lr 0.5")
    assert open("out/manifest.json").read() == before


def test_damaged_set_and_model(call, photos):
    call("distill", photos, "set", *TINY)
    (photos.parent / "set/images/a.png").unlink()
    refused(call("train", "set", "model"), "a.png", "missing")
    refused(call("inspect", "set"), "a.png")


def test_wrong_scale_for_a_model(call, photos):
    call("train", photos, "model", "--model", "srcnn", "--steps", 1, "--batch", 1, "--device", "cpu")
    refused(call("evaluate", "model", photos, "--scale", 3), "×2")


@pytest.mark.parametrize("fail", [lambda: torch.empty(10**15), lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")), lambda: (_ for _ in ()).throw(MemoryError())], ids=["cpu", "gpu", "python"])
def test_out_of_memory_is_no_bug(call, photos, monkeypatch, fail):
    monkeypatch.setattr("sr_distill.distill.distill", lambda *args: fail())
    refused(call("distill", photos, "out", *TINY), "out of memory", "--batch", "--patch", "--size", "--jobs", "--device cpu", code=1)


def test_debug_shows_the_traceback(photos):
    with pytest.raises(Exception, match="no such folder"): main(["distill", "nowhere", "out", "--debug"])


def test_a_model_judged_by_what_it_learnt_from_says_so(call, photos, caplog):
    assert call("distill", photos, "set", *TINY)[0] == 0
    assert call("train", "set", "model", "--model", "edsr", "--depth", 1, "--width", 8, "--steps", 3, "--patch", 16, "--batch", 2, "--device", "cpu")[0] == 0
    assert call("evaluate", "model", photos, "--lpips", "none")[0] == 0
    assert "the model model has learnt from 2 of these 2 photos, a among them" in caplog.text
    caplog.clear()
    (photos / "a.png").rename(photos.parent / "c.png")
    assert call("evaluate", "model", photos, "--lpips", "none")[0] == 0 and "1 of these 1 photos, b among them" in caplog.text
    caplog.clear()
    (photos.parent / "set/manifest.json").write_text("{")                                   # a spoilt set says nothing, and spoils no judgement
    assert call("evaluate", "model", photos, "--lpips", "none")[0] == 0 and "learnt from" not in caplog.text


def test_a_set_goes_on_from_a_finished_one(call, photos):
    assert call("distill", photos, "set", *TINY)[0] == 0
    longer = [a if a != "2" else "5" for a in TINY[:4]] + TINY[4:]
    refused(call("distill", photos, "set", *longer), "a finished set of --steps 2", "--init set --steps 3")
    on = [*TINY, "--init", "set"]
    assert call("distill", photos, "on", *on)[0] == 0 == call("distill", photos, "on", *on)[0]
    about = json.load(open("on/manifest.json"))
    assert about["recipe"]["init"] == "set" and list(about["weights"]) == ["init"] and "Start `set`" in open("on/README.md").read()
    refused(call("distill", photos, "x", *on, "--size", "32"), "holds an image of 24x24", "needs images of 32²")
    refused(call("distill", photos, "x", *on, "--ipc", "2"), "holds 2 images", "makes 4")
    refused(call("distill", photos, "x", *on, "--scale", "4"), "set for ×2", "set/images")
    refused(call("distill", photos, "x", *TINY, "--init", "nowhere"), "--init 'nowhere'", "give a folder")
    refused(call("distill", photos, "x", *on, "--trim", "5"), "--trim 5.0 means nothing to --init set")
    Image.new("RGB", (24, 24), "red").save("set/images/a.png")
    refused(call("distill", photos, "on", *on), "other weights, images or code of --init set")
    assert not os.path.exists("x")


def test_training_goes_on_from_a_model_or_a_file(call, photos, caplog):
    edsr = ["--steps", 3, "--patch", 16, "--batch", 2, "--device", "cpu"]
    assert call("train", photos, "first", "--model", "edsr", "--depth", 1, "--width", 8, *edsr)[0] == 0
    assert call("export", "first", "first.pth")[0] == 0
    (photos / "a.png").rename(photos.parent / "gone.png")
    for begin, out in (("first", "by-folder"), ("first.pth", "by-file")):
        assert call("train", photos, out, "--from", begin, *edsr)[0] == 0
        about = json.load(open(f"{out}/config.json"))
        assert about["origin"]["source"] == begin and about["training"]["depth"] == 1 and f"weights of {begin}" in open(f"{out}/README.md").read()
    from sr_distill.core import state_sha256
    from sr_distill.models import load_model
    assert json.load(open("by-folder/config.json"))["start"] == state_sha256(load_model("first").state_dict())
    assert call("train", photos, "by-folder", "--from", "first", *edsr)[0] == 0             # finished already
    refused(call("train", photos, "by-folder", "--from", "by-file", *edsr), "other start weights")
    assert "from the weights of first" in call("inspect", "by-folder")[1]
    (photos / "b.png").rename(photos / "x.png"), (photos.parent / "gone.png").rename(photos / "a.png")
    assert call("evaluate", "by-folder", photos, "--lpips", "none")[0] == 0 and "learnt from 2 of these 2 photos" in caplog.text   # a through its first model
    refused(call("train", photos, "out", "--from", "first", "--scale", 4), "--scale 4", "has scale 2")
    refused(call("train", photos, "out", "--from", "first", "--model", "vdsr"), "--model vdsr", "has model edsr")
    refused(call("train", photos, "out", "--from", "nowhere"), "nowhere: no such folder")
    torch.save({"layer.weight": torch.zeros(2, 2)}, "other.pth")
    refused(call("train", photos, "out", "--from", "other.pth"), "layer.weight [2, 2]")
    assert not os.path.exists("out")


def test_inspect_a_study(call, photos, tmp_path):
    (tmp_path / "tiny.toml").write_text(f'title = "Tiny"\nphotos = "{photos}"\nheld_out = 1\nseeds = 1\n[sets]\nall = {{all = true}}\n[models]\nVDSR = {{model = "vdsr", depth = 3, width = 8, steps = 2, batch = 1, patch = 16}}\n')
    assert call("study", tmp_path / "tiny.toml", "out", "--jobs", 1)[0] == 0
    code, out, _ = call("inspect", "out")
    assert code == 0 and "trained on" in out and "bicubic" in out


def test_a_model_enlarges_pictures_and_is_written_as_one_file(tmp_path):
    from PIL import Image
    from sr_distill.data import Photos
    from sr_distill.models import make_model, save_model
    save_model(make_model("vdsr", 3, 2, 4), tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    Image.fromarray(Photos.open("embedded")[0][:20, :30]).save(tmp_path / "pictures/one.png")
    assert main(["upscale", str(tmp_path / "model"), str(tmp_path / "pictures"), str(tmp_path / "large")]) == 0
    assert main(["upscale", str(tmp_path / "model"), str(tmp_path / "pictures"), str(tmp_path / "large"), "--scale", "2"]) == 2
    assert Image.open(tmp_path / "large/one.png").size == (90, 60)
    assert main(["upscale", "bicubic", str(tmp_path / "pictures/one.png"), str(tmp_path / "one.png"), "--scale", "4"]) == 0
    assert Image.open(tmp_path / "one.png").size == (120, 80)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.pt"), "--to", "torchscript"]) == 0 and (tmp_path / "model.pt").stat().st_size > 1000
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.xyz")]) == 2 == main(["upscale", str(tmp_path / "gone"), str(tmp_path / "pictures"), str(tmp_path / "large")])
