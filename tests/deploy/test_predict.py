"""Prediction over folders: depth where it belongs, readable by whoever comes next, and nothing lost on the way."""

import json
import os
import signal

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.predict import predict as command
from pipeline.common.progress import Silent
from pipeline.common.signals import Interrupted
from pipeline.deploy.depth_files import color_bar_jpeg, color_jpeg, depth_png, on_image
from pipeline.deploy.image_files import find_images
from pipeline.deploy.predict_folder import FolderOptions, predict_folder
from pipeline.deploy.runners import RunPredictor, open_model
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import load_run, save_weights
from pipeline.sources.view import View
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")


class Darkness:
    """A model whose depth is 12 m times darkness; `before` is called with the number of each batch."""

    def __init__(self, view="full", before=None, range_m=(0.5, 12.0)):
        self.view = View.parse(view)
        self.facts = {"name": "darkness"}
        self.depth_range_m = range_m
        self.depth_space = "metric_m"
        self.batches = 0
        self.before = before or (lambda _: None)

    def predict_m(self, images):
        self.before(self.batches)
        self.batches += 1
        return (fakes.BLACK_M * (1 - images.mean(axis=-1) / 255)).astype(np.float32)


def depth_of(seed, size_px=(24, 32)):
    """What Darkness sees in image number `seed`."""
    return Darkness().predict_m(fakes.image_of(fakes.smooth_depth_m(size_px, seed))[None])[0]


@pytest.fixture
def images(tmp_path):
    """Five images in two folders, of two sizes."""
    names = ("a/0.png", "a/1.JPG", "b/c/0.webp", "b/c/1.png", "2.png")
    for seed, name in enumerate(names):
        fakes.write_image(
            tmp_path / "images" / name, fakes.image_of(fakes.smooth_depth_m((24, 32 + 8 * (seed // 3)), seed))
        )
    return tmp_path / "images"


@pytest.fixture
def run(tmp_path):
    """A run with fresh weights whose depth is not the same everywhere."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    network = build_student("lean", 8)
    torch.nn.init.normal_(network.net.head.weight, std=1.0)
    edges = np.linspace(1, 40, 9).tolist()
    (folder / "config.json").write_text(json.dumps({"student": "lean", "view": "full", "bin_edges_m": edges}))
    save_weights(network, folder / "student.safetensors")
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_png(path):
    return np.asarray(Image.open(path)).astype(np.float64)


def test_every_image_of_a_tree_gets_its_depth_under_its_own_name(tmp_path, images):
    (images / "notes.txt").write_text("no image")
    done = predict_folder(Darkness(), images, tmp_path / "out", FolderOptions(batch_size=2))
    assert (done.images, done.now, done.beyond) == (5, 5, 0)
    expected = {"2.png", "a/0.png", "a/1.png", "b/c/0.png", "b/c/1.png", "predictions.json"}
    assert set(content(tmp_path / "out")) == expected
    assert np.abs(read_png(tmp_path / "out/a/0.png") / 256 - depth_of(0)).max() <= 0.5 / 256
    assert np.abs(read_png(tmp_path / "out/2.png") / 256 - depth_of(4, (24, 40))).max() <= 0.5 / 256


@pytest.mark.parametrize(
    ("options", "folders"),
    [
        (FolderOptions(), {"": 0.5 / 256}),
        (FolderOptions(depth_png="mm", colour=True), {"": 0.0005}),
        (FolderOptions(depth_png="none", npy=True), {"": 0}),
        (FolderOptions(npy=True, colour=True), {"png": 0.5 / 256, "npy": 0}),
    ],
)
def test_a_folder_of_predictions_can_teach(tmp_path, images, options, folders):
    predict_folder(Darkness(), images, tmp_path / "out", options)
    for folder, error_m in folders.items():
        teacher = open_teacher(f"predictions:{tmp_path / 'out' / folder}", device=CPU, options=TeacherOptions())
        depth_m = teacher.predict(None, ["a/0"]).depth[0].numpy()
        assert np.abs(depth_m - depth_of(0)).max() <= error_m + 1e-6
        assert teacher.card.name == "darkness"
        assert teacher.card.depth_space == "metric_m"


def test_depth_of_a_crop_lies_at_its_place_in_the_image_and_nowhere_else(tmp_path, images):
    options = FolderOptions(npy=True)
    predict_folder(Darkness("center:16x20"), images / "a", tmp_path / "out", options)
    depth_m, png = np.load(tmp_path / "out/npy/0.npy"), read_png(tmp_path / "out/png/0.png")
    inside = np.zeros((24, 32), bool)
    inside[4:20, 6:26] = True
    assert np.array_equal(np.isfinite(depth_m), inside)
    assert np.array_equal(png > 0, inside)
    assert np.allclose(depth_m[inside], depth_of(0)[inside], atol=1e-6)
    predict_folder(Darkness("center:16x20"), images / "a", tmp_path / "view", FolderOptions(grid="view"))
    assert read_png(tmp_path / "view/0.png").shape == (16, 20)
    assert json.loads((tmp_path / "view/predictions.json").read_text())["view"] == "center:16x20"


def test_depth_of_a_resized_view_comes_back_at_the_size_of_the_crop():
    rows = np.repeat(np.arange(8, dtype=np.float32)[:, None], 10, 1)
    whole = on_image(rows, View.parse("center:16x20,resize:8x10"), (20, 24))
    assert whole.shape == (20, 24)
    assert np.allclose(whole[2:18, 2], np.clip((np.arange(16) - 0.5) / 2, 0, 7))
    assert np.isnan(whole[:2]).all()
    assert np.isnan(whole[:, -2:]).all()


def test_what_a_png_cannot_hold_is_0_and_counted_and_what_is_near_is_never_0(tmp_path):
    depth_m = np.array([[0.0001, 1.0, 65.535, 65.54, np.nan, 90]], np.float32)
    data, beyond = depth_png(depth_m, 0.001)
    (tmp_path / "a.png").write_bytes(data)
    assert read_png(tmp_path / "a.png").tolist() == [[1, 1000, 65535, 0, 0, 0]]
    assert beyond == 2


def test_pixels_farther_than_a_png_holds_are_told(tmp_path, images):
    class Far(Darkness):
        def predict_m(self, images):
            return super().predict_m(images) + np.float32(60)

    done = predict_folder(Far(range_m=(1.0, 80.0)), images, tmp_path / "out", FolderOptions(depth_png="mm"))
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert done.beyond == written["farther_than_a_png_holds_px"] > 0
    assert done.beyond == sum((read_png(path) == 0).sum() for path in (tmp_path / "out").rglob("*.png"))
    with pytest.raises(
        ValueError, match="`depth_png=mm` holds up to 65.535 m, but the depth of this network starts at 70 m"
    ):
        predict_folder(Far(range_m=(70.0, 80.0)), images, tmp_path / "x", FolderOptions(depth_png="mm"))


def test_near_is_light_far_is_dark_and_the_range_is_the_same_for_all(tmp_path, images):
    gray = [np.asarray(Image.open(path).convert("L")).astype(float).mean() for path in colored(tmp_path, images, "a")]
    assert len(gray) == 5
    near, far = (np.full((8, 8), depth_m, np.float32) for depth_m in (1, 10))
    light, dark = (np.asarray(Image.open(as_file(tmp_path, color_jpeg(one, (0.5, 12))))).mean() for one in (near, far))
    assert light > dark + 50
    none = np.asarray(Image.open(as_file(tmp_path, color_jpeg(np.full((8, 8), np.nan, np.float32), (1, 2)))))
    assert np.abs(none.astype(int) - 128).max() <= 2
    assert (tmp_path / "a" / "colour-bar.jpg").read_bytes() == color_bar_jpeg((0.5, 12.0), "metric_m")
    other = colored(tmp_path, images, "b", colour_range_m=(2.0, 3.0))
    assert [path.read_bytes() for path in other] != [path.read_bytes() for path in colored(tmp_path, images, "c")]


def colored(tmp_path, images, name, **options):
    predict_folder(Darkness(), images, tmp_path / name, FolderOptions(colour=True, **options))
    return sorted((tmp_path / name / "colour").rglob("*.jpg"))


def as_file(folder, data):
    path = folder / "picture.jpg"
    path.write_bytes(data)
    return path


def test_a_bad_image_is_named_and_the_work_before_it_is_kept(tmp_path, images):
    whole = predict_folder(Darkness(), images, tmp_path / "whole", FolderOptions(batch_size=1))
    assert whole.now == 5
    good = (images / "b/c/1.png").read_bytes()
    (images / "b/c/1.png").write_bytes(good[:100])
    with pytest.raises(ValueError, match=r"image .*b/c/1.png: does not decode"):
        predict_folder(Darkness(), images, tmp_path / "out", FolderOptions(batch_size=1))
    assert not (tmp_path / "out").exists()
    (images / "b/c/1.png").write_bytes(good)
    model = Darkness()
    done = predict_folder(model, images, tmp_path / "out", FolderOptions(batch_size=1))
    assert (done.images, done.now, model.batches) == (5, 1, 1)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_ctrl_c_keeps_what_is_done_and_the_same_call_goes_on(tmp_path, images):
    def stop(number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)

    options = FolderOptions(batch_size=1, npy=True, colour=True)
    predict_folder(Darkness(), images, tmp_path / "whole", options)
    with pytest.raises(Interrupted, match="stopped after 2 of 5 images; run the same command again"):
        predict_folder(Darkness(before=stop), images, tmp_path / "out", options)
    done = predict_folder(Darkness(), images, tmp_path / "out", options)
    assert (done.images, done.now) == (5, 3)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_image_that_changed_or_went_since_is_not_taken_from_before(tmp_path, images):
    def fail(number):
        if number == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        predict_folder(Darkness(before=fail), images, tmp_path / "out", FolderOptions(batch_size=1))
    (images / "2.png").unlink()
    fakes.write_image(images / "a/0.png", fakes.image_of(fakes.smooth_depth_m((24, 32), 9)))
    done = predict_folder(Darkness(), images, tmp_path / "out", FolderOptions(batch_size=1))
    assert (done.images, done.now) == (4, 3)
    assert not (tmp_path / "out/2.png").exists()
    assert np.abs(read_png(tmp_path / "out/a/0.png") / 256 - depth_of(9)).max() <= 0.5 / 256


def test_other_options_never_go_on_from_each_others_files(tmp_path, images):
    def fail(number):
        if number == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        predict_folder(Darkness(before=fail), images, tmp_path / "out", FolderOptions(batch_size=1))
    done = predict_folder(Darkness(), images, tmp_path / "out", FolderOptions(batch_size=1, depth_png="mm"))
    assert done.now == 5
    assert np.abs(read_png(tmp_path / "out/a/0.png") / 1000 - depth_of(0)).max() <= 0.0005 + 1e-6


def test_folders_without_images_doubles_and_targets_that_exist_are_refused(tmp_path, images):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no images; expected files that end in .png"):
        find_images(tmp_path / "empty")
    with pytest.raises(ValueError, match="does not exist; expected an image"):
        find_images(tmp_path / "nowhere")
    fakes.write_image(images / "a/0.jpg", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"0.jpg and .*0.png have the same id a/0; rename or move one"):
        find_images(images)
    with pytest.raises(ValueError, match="already exists; refusing to overwrite"):
        predict_folder(Darkness(), images, tmp_path / "empty")
    with pytest.raises(ValueError, match=r"2.png: an image of 24x40 px is smaller than the view center:30x30"):
        predict_folder(Darkness("center:30x30"), images / "2.png", tmp_path / "out")


def test_images_of_unsupported_formats_are_skipped_with_a_note(images):
    class Listener(Silent):
        def __init__(self):
            self.said = []

        def note(self, text):
            self.said.append(text)

    Image.new("RGB", (4, 4)).save(images / "a" / "old.bmp")
    (images / ".hidden.png").write_bytes(b"")
    listener = Listener()
    assert [image_id for image_id, _ in find_images(images, listener)] == ["2", "a/0", "a/1", "b/c/0", "b/c/1"]
    assert listener.said == [
        "images skipped: 1 with an unsupported format (old.bmp); convert them to PNG, JPEG or WebP"
    ]


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="nothing to write"):
        FolderOptions(depth_png="none")
    with pytest.raises(ValueError, match="`colour_range_m=5:5`: expected two ascending depths above 0"):
        FolderOptions(colour_range_m=(5.0, 5.0))
    with pytest.raises(ValueError, match="`batch_size=0`"):
        FolderOptions(batch_size=0)


def test_the_command_predicts_one_image_with_a_run(tmp_path, images, run):
    arguments = [run, images / "a/0.png", "--out", tmp_path / "out", "--size", "48x64", "--npy", "--depth-png", "none"]
    done = CliRunner().invoke(command, [str(one) for one in [*arguments, "--device", "cpu"]])
    assert done.exit_code == 0, done.output
    assert done.output.endswith("out: 1 images\n")
    depth_m = np.load(tmp_path / "out" / "0.npy")
    assert depth_m.shape == (24, 32)
    predictor = RunPredictor(load_run(run), CPU, (48, 64))
    image = np.asarray(Image.open(images / "a/0.png"))
    view_m = predictor.predict_m(predictor.view.of_image(image)[None])[0]
    assert np.allclose(depth_m, on_image(view_m, predictor.view, (24, 32)))
    facts = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert facts["view"] == "full,resize:48x64"
    assert facts["weights_sha256"] == load_run(run).weights_sha256


def test_what_is_no_model_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"folder is not a complete run: config.json is missing"):
        open_model(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"absent.onnx is not a complete run"):
        open_model(tmp_path / "absent.onnx")


@pytest.mark.slow
def test_an_exported_file_predicts_what_its_run_predicts(tmp_path, images, run):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from pipeline.deploy.export import ExportOptions, export_student
    from pipeline.deploy.parity import images_of_files

    size_px = (64, 64)
    calibration = images_of_files([path for _, path in find_images(images)], View("full", None, size_px), 5)
    options = ExportOptions(size_px=size_px)
    small = tmp_path / "small.onnx"
    export_student(load_run(run), tmp_path / "a.onnx", options, given=calibration, int8=small, calibration=calibration)
    outputs = {}
    wanted = FolderOptions(depth_png="none", npy=True)
    for name, model in (
        ("run", open_model(run, size_px)),
        ("a", open_model(tmp_path / "a.onnx")),
        ("8", open_model(small)),
    ):
        predict_folder(model, images, tmp_path / "by" / name, wanted)
        outputs[name] = np.concatenate(
            [np.load(path).ravel() for path in sorted((tmp_path / "by" / name).rglob("*.npy"))]
        )
    assert np.ptp(outputs["run"]) > 0.5
    assert np.allclose(outputs["a"], outputs["run"], rtol=1e-4)
    assert 0 < np.median(np.abs(outputs["8"] / outputs["run"] - 1)) < 0.1
    with pytest.raises(ValueError, match=r"takes 64x64 px only; omit `size_px`"):
        open_model(small, (32, 64))
    with pytest.raises(ValueError, match="`device=cuda`: an ONNX file runs on the CPU"):
        open_model(small, None, "cuda")
    assert json.loads((tmp_path / "by" / "8" / "predictions.json").read_text())["precision"] == "int8"


def test_images_that_are_left_out_are_named_with_their_count_and_linked_folders_are_read(tmp_path):
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    for name in (b"a/1.PNG", b"caf\xe9.png", b"x.tif", b"y.bmp"):
        with open(os.path.join(os.fsencode(root), name), "wb"):  # noqa: PTH118, PTH123 - a name of bytes
            pass
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.jpg").touch()
    (root / "circle").symlink_to(root)
    assert [image_id for image_id, _ in find_images(root, Notes())] == ["a/1", "linked/2"]
    assert said == [
        "images skipped: 2 with an unsupported format (x.tif ...); convert them to PNG, JPEG or WebP",
        "images skipped: 1 with control characters or non-UTF-8 bytes in the name (caf\\udce9.png); rename them",
    ]
