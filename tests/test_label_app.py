"""The MONAI Label app as its users meet it: the real server process, the real client, and plain HTTP."""

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
import torch
from helpers import voxels

from monai_lcs.labels import LabelTable
from monai_lcs.metrics import label_dice
from monai_lcs.pipeline import Settings, make_network

pytest.importorskip("monailabel", reason="needs MONAI Label: make test-label")
psutil = pytest.importorskip("psutil")  # comes with it
pytestmark = [
    pytest.mark.slow,
    # MONAI Label's client: an old module, and connections that it leaves to the garbage collector
    pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WEIGHTS = Path(__file__).parents[1] / "bundles/whole_brain_lcs_segmentation/models/model.pt"
SETTINGS = {"align": "affine", "spacing": [4, 4, 4], "channels": [4, 8, 16], "prior_logit": 0.0}
SCANS = ["sub-01", "sub-02", "sub-03", "sub-04"]
MOST_MEGABYTES = 30


class Server:
    """A server process on a free loopback port, started by the line that the command prints."""

    def __init__(self, folder, data, *conf):
        self.folder, self.data, self.conf = folder, data, list(conf)
        self.studies = folder / "study"
        self.process = None

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "monai_lcs.label_app",
            str(self.folder / "app"),
            "--studies",
            str(self.studies),
        ]
        files = {"image": "atlas_T1w.nii.gz", "labels": "atlas_dseg.nii.gz"}
        for name, file in files.items():
            command += [f"--atlas_{name}", str(self.data / "atlas" / file)]
        command += ["--label_table", str(self.data / "atlas/atlas_dseg.tsv"), "--port", str(self.port)]
        self.line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        environment = {
            **os.environ,
            **{name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
            "MONAI_LABEL_SESSION_PATH": str(self.folder / "sessions"),
        }
        self.log = (self.folder / "server.log").open("a")
        self.process = subprocess.Popen(
            [*shlex.split(self.line), *self.conf], stdout=self.log, stderr=subprocess.STDOUT, env=environment
        )
        for _ in range(240):
            try:
                requests.get(f"{self.url}/info/", timeout=60).raise_for_status()
                return self
            except requests.ConnectionError:
                assert self.process.poll() is None, Path(self.log.name).read_text(encoding="utf-8")[-3000:]
                time.sleep(0.5)
        raise TimeoutError(Path(self.log.name).read_text(encoding="utf-8")[-3000:])

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.log.close()

    def restart(self, *conf):
        self.kill()
        self.conf = list(conf) or self.conf
        return self.start()

    def client(self, folder):
        from monailabel.client import MONAILabelClient

        folder.mkdir(parents=True, exist_ok=True)
        return MONAILabelClient(self.url, tmpdir=str(folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sample data, the atlas without the left thalamus, which nobody will train for."""
    return make_data(tmp_path_factory.mktemp("sample") / "data", spacing=4.0)


def make_data(folder, spacing):
    from monai_lcs.sample_data import make_sample_data

    folder = make_sample_data(folder, subjects=6, spacing=spacing)
    path = folder / "atlas/atlas_dseg.nii.gz"
    atlas = nib.load(path)
    labels = np.asarray(atlas.dataobj).copy()
    table = LabelTable.read(folder / "atlas/atlas_dseg.tsv")
    (left,) = table.select("Left-Thalamus")
    save_labels((labels == left).astype(np.uint8), atlas.affine, folder / "left_thalamus.nii.gz")
    labels[labels == left] = 0
    save_labels(labels, atlas.affine, path)
    LabelTable([label for label in table if label.id != left]).write(folder / "atlas/atlas_dseg.tsv", overwrite=True)
    return folder


@pytest.fixture(scope="module")
def server(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("label app")  # with a space
    (folder / "study").mkdir()
    for scan in SCANS:
        (folder / f"study/{scan}.nii.gz").write_bytes((data / f"images/{scan}.nii.gz").read_bytes())
    conf = ["--conf", "settings", json.dumps(SETTINGS), "--conf", "most_megabytes", str(MOST_MEGABYTES)]
    server = Server(folder, data, *conf)
    yield server.start()
    server.kill()


@pytest.fixture
def client(server, tmp_path):
    return server.client(tmp_path / "client")


def save_labels(array, affine, path):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def dice(found, truth, id=1):
    return float(label_dice(torch.as_tensor(found.astype(int)), torch.as_tensor(truth.astype(int)), [id])[0])


def refused(call, *args, **kwargs):
    """Status and message of an error."""
    from monailabel.client.client import MONAILabelClientException

    with pytest.raises(MONAILabelClientException) as error:
        call(*args, **kwargs)
    status, _, rest = error.value.msg.removeprefix("Status: ").partition("; Response: ")
    return int(status), json.loads(rest)["detail"]


def paint(client, data, name, **info):
    """The left thalamus painted on the atlas under a name."""
    segments = [{"name": name, "idx": 1, **info}, {"name": "Brain-Stem", "idx": 2}]
    return client.save_label("atlas", str(data / "left_thalamus.nii.gz"), params={"label_info": segments})


def test_info(client):
    info = client.info()
    assert set(info["models"]) == {"lcs", "lcs_click"}
    assert (info["models"]["lcs"]["type"], info["models"]["lcs_click"]["type"]) == ("segmentation", "deepgrow")
    assert info["models"]["lcs"]["labels"]["Brain-Stem"] == 83
    assert "Right-Hippocampus" in info["labels"]
    assert "alignment alone" in info["models"]["lcs"]["description"]
    assert info["trainers"]["lcs"]["config"]["tracking"] == ["None", "mlflow"]
    assert set(info["strategies"]) == {"least_certain", "paint_atlas"}


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_labels_by_prompt_on_the_grid_of_the_scan(client, server, extension):
    params = {"label_prompt": ["Right-Hippocampus", "*-Amygdala", 83], "result_extension": extension}
    file, answer = client.infer("lcs", "sub-01", params)
    assert list(answer["label_names"].items()) == [
        ("Left-Amygdala", 41), ("Right-Hippocampus", 81), ("Right-Amygdala", 82), ("Brain-Stem", 83)
    ]  # fmt: skip
    scan, result = (sitk.ReadImage(str(path)) for path in (server.studies / "sub-01.nii.gz", file))
    for grid in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(result, grid)() == pytest.approx(getattr(scan, grid)(), abs=1e-4)
    assert set(np.unique(sitk.GetArrayFromImage(result))) == {0, 41, 81, 82, 83}


def test_all_labels(client, data):
    file, answer = client.infer("lcs", "sub-01", {"label_prompt": "all"})
    truth = voxels(data / "labels/sub-01.nii.gz")
    assert np.mean([dice(voxels(file), truth, id) for id in (40, 81, 83)]) > 0.6
    assert list(answer["label_names"].values()) == sorted(set(np.unique(voxels(file)).tolist()) - {0})


def test_unions(client):
    apart, _ = client.infer("lcs", "sub-01", {"label_prompt": "*-Amygdala"})
    for prompt, name in (("Left-Amygdala + Right-Amygdala",) * 2, ({"both": ["*-Amygdala"]}, "both")):
        file, answer = client.infer("lcs", "sub-01", {"label_prompt": prompt})
        assert answer["label_names"] == {name: 41}
        np.testing.assert_array_equal(voxels(file) == 41, voxels(apart) > 0)


def test_unknown_label(client):
    status, detail = refused(client.infer, "lcs", "sub-01", {"label_prompt": "Left-Hipocampus"})
    assert status == 400
    assert "'Left-Hippocampus'" in detail
    status, detail = refused(client.infer, "lcs", "sub-01", {"label_prompt": 84})
    assert (status, "83" in detail) == (400, True)
    status, detail = refused(client.infer, "lcs_click", "sub-01", {"label": "Segment_1"})
    assert (status, "'Segment_1' names no label" in detail) == (400, True)


def test_click_tool(client):
    file, answer = client.infer(
        "lcs_click", "sub-01", {"label": "Brain-Stem", "foreground": [[9, 9, 9]], "background": []}
    )
    assert answer["label_names"] == {"Brain-Stem": 83}
    other, _ = client.infer("lcs", "sub-01", {"label_prompt": 83})
    np.testing.assert_array_equal(voxels(file), voxels(other))


def test_upload_of_another_orientation_and_spacing(client, data, server):
    path = data / "scan/scan.nii.gz"
    assert client.upload_image(str(path), "new scan.nii.gz") == {"image": "new scan"}
    file, _ = client.infer("lcs", "new scan", {"label_prompt": "Brain-Stem"})
    scan, result = nib.load(path), nib.load(file)
    assert nib.aff2axcodes(result.affine) == ("P", "S", "L")
    np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
    assert result.shape == scan.shape
    assert dice(voxels(file), voxels(data / "scan/scan_labels.nii.gz"), 83) > 0.7
    assert client.upload_image(str(path), "new scan") == {"image": "new scan"}  # once more, the same
    status, detail = refused(client.upload_image, str(data / "images/sub-05.nii.gz"), "new scan")
    assert (status, "another image" in detail) == (409, True)
    np.testing.assert_array_equal(voxels(server.studies / "new scan.nii.gz"), voxels(path))


def test_a_file_with_the_request(client, data, server, tmp_path):
    file, answer = client.infer("lcs", "", {"label_prompt": 83}, file=str(data / "images/sub-05.nii.gz"))
    assert answer["label_names"] == {"Brain-Stem": 83}
    assert voxels(file).shape == nib.load(data / "images/sub-05.nii.gz").shape
    assert left_behind(server) == []


def test_a_label_painted_on_the_atlas_is_found_on_a_scan(client, data):
    assert refused(client.infer, "lcs", "sub-02", {"label_prompt": "Left-Thalamus"})[0] == 400
    before = client.infer("lcs", "atlas", {"label_prompt": "all"})[0]
    client.infer("lcs", "sub-02", {"label_prompt": 83})  # aligns the atlas
    answer = paint(client, data, "Left-Thalamus", color=[0, 118, 14])
    assert answer["change"] == "painted Left-Thalamus"
    info = client.datastore()["objects"]["atlas"]["labels"]["final"]["info"]["label_info"]
    assert info[-1] == {"name": "Left-Thalamus", "idx": 84, "color": [0, 118, 14]}
    file, said = client.infer("lcs", "sub-02", {"label_prompt": "Left-Thalamus"})
    assert (said["label_names"], said["aligned"]) == ({"Left-Thalamus": 84}, "cached")
    score = dice(voxels(file) > 0, voxels(data / "labels/sub-02.nii.gz") == 35)
    print(f"Left-Thalamus, painted on the atlas, on another scan: Dice {score:.3f} by alignment alone")
    assert score > 0.6
    after = client.infer("lcs", "atlas", {"label_prompt": "all"})[0]
    painted = voxels(data / "left_thalamus.nii.gz") > 0
    np.testing.assert_array_equal(voxels(after), np.where(painted, 84, voxels(before)))

    requests.delete(client.get_server_url() + "/datastore/label?id=atlas&tag=final", timeout=60).raise_for_status()
    assert refused(client.infer, "lcs", "sub-02", {"label_prompt": "Left-Thalamus"})[0] == 400
    np.testing.assert_array_equal(voxels(client.infer("lcs", "atlas", {})[0]), voxels(before))


def test_painting_what_cannot_be_used(client, data, server, tmp_path):
    versions = sorted((server.studies / "lcs/atlas").iterdir())
    for name in ("../../evil", "all", "17", "brain-stem", "a\tb", "x" * 200):
        status, detail = refused(paint, client, data, name)
        assert status == 400
        assert "name" in detail or "called" in detail
    scan = nib.load(data / "scan/scan_labels.nii.gz")
    other = save_labels(np.ones(scan.shape, np.uint8), scan.affine, tmp_path / "other.nii.gz")
    status, detail = refused(client.save_label, "atlas", other, params={"label_info": [{"name": "new", "idx": 1}]})
    assert (status, "same grid" in detail, "The uploaded file" in detail) == (400, True, True)
    assert sorted((server.studies / "lcs/atlas").iterdir()) == versions
    assert left_behind(server) == []


def test_labels_of_scans(client, data):
    """What Slicer sends has values of its own, named by `label_info`; names that the atlas lacks are kept."""
    truth = nib.load(data / "labels/sub-04.nii.gz")
    labels = np.asarray(truth.dataobj)
    mine = (labels == 83) + 2 * (labels == 40) + 3 * (labels == 41)
    path = save_labels(mine.astype(np.uint8), truth.affine, data / "mine.nii.gz")
    names = [{"name": name, "idx": i + 1} for i, name in enumerate(("Brain-Stem", "Left-Hippocampus", "lesion"))]
    assert client.save_label("sub-04", path, params={"label_info": names}) == {"image": "sub-04", "label": "sub-04"}
    np.testing.assert_array_equal(voxels(client.download_label("sub-04", "final")), mine)
    items = requests.get(client.get_server_url() + "/datastore/?output=train", timeout=60).json()
    (item,) = [item for item in items if "sub-04" in item["image"]]
    assert item["label_info"] == names
    assert not [item for item in items if "atlas" in item["image"]]
    assert client.info()["datastore"]["completed"] >= 2


def test_strategies(client):
    answer = client.next_sample("least_certain", {})
    assert answer["id"] != "atlas"
    assert 0 < answer["certainty"] < 1
    assert client.next_sample("paint_atlas", {})["id"] == "atlas"
    response = requests.post(client.get_server_url() + "/activelearning/other", json={}, timeout=60)
    assert (response.status_code, "least_certain" in response.json()["detail"]) == (404, True)


def test_as_slicer_and_ohif_send_it(server, data, tmp_path):
    """Slicer: a form of params, options as texts, the answer a form; OHIF: ids, NRRD bytes of one byte a voxel."""
    params = {
        "label_prompt": "Brain-Stem,Left-Amygdala",
        "device": "cpu",
        "result_extension": ".nrrd",
        "client_id": "user",
    }
    response = requests.post(
        f"{server.url}/infer/lcs?image=sub-01", files={"params": (None, json.dumps(params))}, timeout=60
    )
    assert response.headers["content-type"].startswith("multipart/form-data")
    assert b'"label_names": {"Left-Amygdala": 41, "Brain-Stem": 83}' in response.content
    params = {"label_prompt": [83], "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    params["restore_label_idx"] = False
    response = requests.post(
        f"{server.url}/infer/lcs?image=sub-01&output=image", data={"params": json.dumps(params)}, timeout=60
    )
    (tmp_path / "ohif.nrrd").write_bytes(response.content)
    assert b"encoding: raw" in response.content[:500]
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ohif.nrrd"))))) == {0, 83}
    with open(data / "left_thalamus.nii.gz", "rb") as file:
        files = {
            "label": ("tmp1.nii.gz", file),
            "params": (None, json.dumps({"label_info": [{"name": "by http", "idx": 1}]})),
        }
        response = requests.put(f"{server.url}/datastore/label?image=atlas", files=files, timeout=60)
    assert response.json()["change"] == "painted by http"
    requests.delete(f"{server.url}/datastore/label?id=atlas&tag=final", timeout=60).raise_for_status()


def left_behind(server):
    """Files that came with requests; those of answered requests go right after the answer."""
    for _ in range(20):
        found = [path.name for path in (server.folder / "app/uploads").iterdir()]
        if not found:
            break
        time.sleep(0.1)
    return found


def test_nothing_leaves_the_study_folder(client, data, server, tmp_path):
    image, label = str(data / "images/sub-05.nii.gz"), str(data / "labels/sub-04.nii.gz")
    inside = sorted(server.studies.rglob("*"))
    outside = sorted(server.folder.iterdir())
    for name in ("../evil", "/evil", "a/b", ".hidden", "..", "a\\b", "x" * 300):
        status, detail = refused(client.upload_image, image, name)
        assert (status, "image id" in detail) == (400, True), name
    assert refused(client.upload_image, image, "atlas")[0] == 409
    for tag in ("../../evil", "a/b", ".."):
        assert refused(client.save_label, "sub-04", label, tag=tag)[0] == 400
    assert refused(client.save_label, "../sub-04", label)[0] == 404
    for other in (image, "/etc/hostname", "../study/sub-01", str(server.folder / "server.log")):
        assert refused(client.infer, "lcs", other, {"label_prompt": 83})[0] == 404
    assert refused(client.infer, "lcs", "sub-01", {"result_extension": "/../../x.nii.gz.exe"})[0] == 400
    assert sorted(server.studies.rglob("*")) == inside
    assert sorted(server.folder.iterdir()) == outside
    assert left_behind(server) == []


def test_what_is_no_image_or_too_big(client, server, tmp_path):
    inside = sorted(server.studies.rglob("*"))
    text, cut, bomb, big = (tmp_path / f"{name}.nii.gz" for name in ("text", "cut", "bomb", "big"))
    text.write_text("not an image")
    cut.write_bytes((server.studies / "sub-01.nii.gz").read_bytes()[:5000])
    header = nib.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    header.set_data_dtype(np.uint8)
    nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_filename(bomb)
    with nib.openers.Opener(str(bomb), "wb") as stream:
        header["magic"], header["vox_offset"] = b"n+1", 352
        stream.write(header.binaryblock + bytes(4 + 8))
    big.write_bytes(bytes(MOST_MEGABYTES * 1_000_000 + 1))
    for path, expected in ((text, 400), (cut, 400), (bomb, 413), (big, 413)):
        status, detail = refused(client.upload_image, str(path), path.name)
        assert (status, len(detail) > 20) == (expected, True), path
        assert refused(client.infer, "lcs", "", {"label_prompt": 83}, file=str(path))[0] == expected
        assert refused(client.save_label, "sub-01", str(path))[0] == expected
    (tmp_path / "scan.exe").write_text("not an image")
    assert refused(client.upload_image, str(tmp_path / "scan.exe"), "scan")[0] == 400
    chunks = (bytes(1_000_000) for _ in range(MOST_MEGABYTES + 2))  # a request that does not say how long it is
    response = requests.put(
        f"{server.url}/datastore/?image=x",
        data=chunks,
        headers={"content-type": "multipart/form-data; boundary=x"},
        timeout=60,
    )
    assert 400 <= response.status_code < 500
    assert sorted(server.studies.rglob("*")) == inside
    assert left_behind(server) == []


def test_only_this_machine_is_answered(server):
    assert "--host 127.0.0.1" in server.line
    connections = psutil.Process(server.process.pid).net_connections(kind="inet")
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", server.port)}


def test_two_clients_at_once_get_their_own_answers(server, tmp_path):
    asked = [("sub-01", "Brain-Stem"), ("sub-02", "Left-Amygdala"), ("sub-02", "Brain-Stem"), ("sub-01", "all")] * 3

    def answer(number):
        scan, prompt = asked[number]
        file, said = server.client(tmp_path / str(number)).infer("lcs", scan, {"label_prompt": prompt})
        return hashlib.sha256(voxels(file).tobytes()).hexdigest(), said["label_names"]

    alone = [answer(number) for number in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(answer, range(len(asked))))
    assert together == alone * 3


def test_nothing_saved_is_lost_when_the_server_is_killed(server, data, tmp_path):
    client = server.client(tmp_path)
    client.upload_image(str(data / "images/sub-06.nii.gz"), "late")
    client.save_label("late", str(data / "labels/sub-06.nii.gz"))
    done = []

    def keep_painting():
        try:
            for number in range(1000):
                done.append(paint(client, data, f"painted {number}")["change"])
        except Exception:  # the server is gone
            return

    thread = threading.Thread(target=keep_painting)
    thread.start()
    while len(done) < 5:
        time.sleep(0.05)
    server.kill()
    thread.join()
    client = server.restart().client(tmp_path)
    info = client.info()
    assert done[-1].removeprefix("painted ") in info["labels"]
    store = server.studies / "lcs/atlas"
    changes = [
        json.loads(path.read_text(encoding="utf-8"))["change"] for path in sorted(store.glob("[0-9]*/version.json"))
    ]
    assert [change for change in changes if change in done] == done
    np.testing.assert_array_equal(voxels(client.download_label("late", "final")), voxels(data / "labels/sub-06.nii.gz"))
    assert client.infer("lcs", "late", {"label_prompt": 83})[1]["label_names"] == {"Brain-Stem": 83}
    assert left_behind(server) == []


def wait_for_training(client):
    while (status := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(1)
    return status


def test_training(server, data, tmp_path):
    """Two epochs from weights that know nothing; then a run that can only get worse."""
    settings = Settings(**SETTINGS)
    torch.manual_seed(0)
    torch.save(make_network(settings).state_dict(), tmp_path / "random.pt")
    settings.write(tmp_path / "random.json")
    client = server.restart(*server.conf, "--conf", "checkpoint", str(tmp_path / "random.pt")).client(tmp_path)
    assert "random.pt" in client.info()["models"]["lcs"]["description"]
    for scan in ("sub-01", "sub-02", "sub-03"):
        client.save_label(scan, str(data / f"labels/{scan}.nii.gz"))
    asked = ("lcs", "late", {"label_prompt": "Brain-Stem"})
    first = voxels(client.infer(*asked)[0])
    client.train_start("lcs", {"max_epochs": 2, "labels_per_image": 8, "learning_rate": 0.005})
    status = wait_for_training(client)
    assert status["status"] == "DONE", "\n".join(status["details"])
    stats = client.info()["train_stats"]["lcs"]
    assert (stats["epoch"], stats["total_epochs"], stats["train"]["scans"] + stats["eval"]["scans"]) == (2, 2, 5)
    assert stats["best_metric"] > stats["eval"]["before"]
    print(f"Validation Dice before training {stats['eval']['before']}, after two epochs {stats['best_metric']}")
    assert "model.pt" in client.info()["models"]["lcs"]["description"]
    assert (voxels(client.infer(*asked)[0]) != first).any()

    weights = server.studies / "lcs/model/model.pt"
    kept = weights.read_bytes()
    client.train_start("lcs", {"max_epochs": 1, "labels_per_image": 1, "learning_rate": 30.0})
    assert wait_for_training(client)["status"] == "DONE"
    stats_of_bad_run = client.info()["train_stats"]["lcs"]
    assert stats_of_bad_run["best_metric_epoch"] == 0
    assert stats_of_bad_run["best_metric"] == pytest.approx(stats["best_metric"], abs=0.001)
    assert weights.read_bytes() == kept
    assert client.next_sample("least_certain", {})["id"] not in ("atlas", "sub-01")


def test_a_painted_label_is_found_better_than_by_alignment(tmp_path):
    """With the bundle's weights, which never saw the label under this name, and scans of 2 mm, as the README's demo."""
    answers, data = {}, make_data(tmp_path / "data", spacing=2.0)
    for how, conf in (("alignment", []), ("network", ["--conf", "checkpoint", str(WEIGHTS)])):
        folder = tmp_path / how
        (folder / "study").mkdir(parents=True)
        (folder / "study/sub-06.nii.gz").write_bytes((data / "images/sub-06.nii.gz").read_bytes())
        server = Server(folder, data, *conf).start()
        try:
            client = server.client(folder / "client")
            paint(client, data, "painted")
            found = voxels(client.infer("lcs", "sub-06", {"label_prompt": "painted"})[0]) > 0
            answers[how] = dice(found, voxels(data / "labels/sub-06.nii.gz") == 35)
        finally:
            server.kill()
    print(f"Dice of a painted label by {answers}")
    assert answers["network"] > answers["alignment"]
