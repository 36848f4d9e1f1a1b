"""The commands as a person or a program calls them: documents, exit codes, settings, help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import made_up
import pyarrow.parquet as pq
import pytest
from made_up import CONSOLE_SCRIPT, QUICK, Workplace, cfa
from PIL import Image

PROCESS = {**os.environ, **made_up.ONE_THREAD}
RANDOM_WARNING = "warning: random (seed 0) weights"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A built category that no test of this file changes."""
    return made_up.built_workplace(tmp_path_factory.mktemp("place"))


def test_the_whole_way_with_real_weights_on_solar_cells(tmp_path: Path) -> None:
    from cfa_index import lay_out_cells

    lay_out_cells(tmp_path / "data", "mono", limit=24)
    place = Workplace(root=tmp_path)
    common = ("-c", "mono-cells")
    built = cfa(
        *("build", *common, *place.everything, "--json", "-"),
        *("--backbone", "efficientnet_lite0", "--bank-size", "128"),
    )
    assert built.code == 0, built
    assert built.document["images"] == 24
    assert (built.document["memories"], built.document["spec"]["features"]["size_px"]) == (128, 224)
    assert "warning" not in built.err

    trained = cfa("train", *common, *place.stores, "--epochs", "1", "--json", "-")
    assert trained.code == 0, trained
    assert [row["epoch"] for row in trained.document["epochs"]] == [1]

    evaluated = cfa("evaluate", *common, "--data-root", place.data, *place.model, "--json", "-")
    assert evaluated.code == 0, evaluated
    assert evaluated.document["generation"] == "0002"
    assert evaluated.document["image_auroc"] > 0.8
    assert evaluated.document["pixel_auroc"] is None
    assert "no mask" in evaluated.document["masks"]

    cell = next(iter(sorted((place.data / "mono-cells" / "test" / "defect").iterdir())))
    queried = cfa("query", cell, *common, *place.model, "-o", tmp_path / "query", "--json", "-")
    assert queried.code == 0, queried
    with Image.open(tmp_path / "query" / f"{cell.stem}_query.png") as picture:
        assert picture.width > 300
    assert len(queried.document["images"][0]["worst_patches"]) == 4

    target = tmp_path / "scores"
    scored = cfa(
        *("score", place.data / "mono-cells" / "test", *common, *place.model),
        *("-o", target, "--heatmaps", "--json", "-"),
    )
    assert scored.code == 0, scored
    assert scored.document["images"] == 12
    assert len(list((target / "heatmaps").glob("*.png"))) == 12
    assert (target / "scores.csv").read_text().count("\n") == 13


def test_demo_on_a_few_cells(tmp_path: Path) -> None:
    """Every stage of it, and what the report names is there."""
    outcome = cfa("demo", "--images", "16", "--bank-size", "64", "-o", tmp_path / "demo", "--json", "-")
    assert outcome.code == 0, outcome
    document = outcome.document
    assert {"build", "train", "query", "score a folder"} <= set(document["seconds"])
    assert 0 <= document["before_training"]["image_auroc"] <= 1
    assert 0 <= document["after_training"]["image_auroc"] <= 1
    assert Path(document["picture"]).is_file()
    assert (Path(document["scores"]["output"]) / "scores.csv").is_file()
    assert document["scores"]["images"] == 8
    pictures = [Path(document["picture"]), *(Path(document["scores"]["output"]) / "heatmaps").iterdir()]
    assert len(pictures) == 9
    for path in pictures:
        with Image.open(path) as picture:
            assert "CC BY-NC-SA" in picture.info["Copyright"]
    assert "CC BY-NC-SA" in outcome.err
    again = cfa("demo", "--images", "16", "--bank-size", "64", "-o", tmp_path / "demo")
    assert again.code == 0, again


def test_documents_on_standard_output_and_in_a_file_are_the_same(place: Workplace, tmp_path: Path) -> None:
    evaluate = ("evaluate", "-c", "weave", "--data-root", place.data, *place.model)
    shown = cfa(*evaluate, "--json", "-")
    written = cfa(*evaluate, "--json", tmp_path / "result.json")
    assert (shown.code, written.code) == (0, 0)
    assert written.out == ""
    assert json.loads((tmp_path / "result.json").read_text()) == shown.document
    assert shown.document["schema_version"] == 2
    assert shown.document["aupro"] > 0.3
    assert RANDOM_WARNING in shown.err
    assert RANDOM_WARNING in written.err


def test_every_line_of_the_events_is_one_event(place: Workplace, tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    outcome = cfa("evaluate", "-c", "weave", "--data-root", place.data, *place.model, "--events", events)
    assert outcome.code == 0, outcome
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert {line["event"] for line in lines} >= {"StageStarted", "StageAdvanced", "StageEnded"}
    assert sum(line["steps"] for line in lines if line["event"] == "StageAdvanced") == 8
    assert all(line["time"] > 1e9 for line in lines)


def test_every_command_warns_of_random_weights(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=10, test=2)
    image = place.data / "weave" / "test" / "hole" / "000.png"
    for outcome in (
        place.build(),
        cfa("train", "-c", "weave", *place.stores),
        cfa("evaluate", "-c", "weave", "--data-root", place.data, *place.model),
        cfa("query", image, "-c", "weave", *place.model, "-o", tmp_path / "query"),
        cfa("score", image.parent, "-c", "weave", *place.model, "-o", tmp_path / "scores"),
    ):
        assert outcome.code == 0, outcome
        assert RANDOM_WARNING in outcome.err, outcome


def test_flags_win_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    made_up.write_category(tmp_path / "by-flag", train=6, test=1)
    made_up.write_category(tmp_path / "by-environment", train=7, test=1)
    made_up.write_category(tmp_path / "by-file", train=8, test=1)
    config = tmp_path / "settings.toml"
    config.write_text(
        f'data-root = "{tmp_path}/by-file"\nseed = 3\nheatmaps = true\n'
        f'[build]\nbank_size = 12\nweights = "random"\nbackbone = "resnet18"\nsize = 64\nstrides = [4, 8]\n'
    )
    models = ("--models-dir", tmp_path / "models", "--features-dir", tmp_path / "features")
    build = ("build", "-c", "weave", "--config", config, *models, "--json", "-")

    from_file = cfa(*build)
    assert from_file.code == 0, from_file
    assert (from_file.document["images"], from_file.document["memories"]) == (8, 12)
    assert from_file.document["spec"]["seed"] == 3
    assert from_file.document["spec"]["held_out"] == 0.2  # the default

    environment = {"CFA_INDEX_DATA_ROOT": str(tmp_path / "by-environment")}
    assert cfa(*build, env=environment).document["images"] == 7

    flags = ("--data-root", tmp_path / "by-flag", "--bank-size", "9")
    flagged = cfa(*build, *flags, env=environment).document
    assert (flagged["images"], flagged["memories"]) == (6, 9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[build]\nbank_sise = 3\n", "bank_sise"),
        ("bank_sise = 3\n", "bank_sise"),
        ("[biuld]\n", "biuld"),
        ("not toml", "cannot read"),
        ("[build]\nsize = 'large'\n", "--size"),
        ("build = 3\n", "as a value, not as a table"),
        ("[[build]]\nsize = 64\n", "as a value, not as a table"),
        ("train = 3\n", "train"),
        ("[build]\nstrides = []\n", "list of strides"),
    ],
)
def test_a_config_that_cannot_be_is_bad_usage(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "settings.toml"
    config.write_text(text)
    outcome = cfa("build", "-c", "weave", "--config", config)
    assert outcome.code == 2, outcome
    assert says in outcome.err


def test_all_categories_in_one_run(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6, test=2)
    made_up.write_category(place.data, "twill", train=7, test=2)
    (place.data / "no category").mkdir()
    built = place.build("--json", "-", category="all")
    assert built.code == 0, built
    assert [(m["category"], m["images"]) for m in built.document["categories"]] == [
        ("twill", 7),
        ("weave", 6),
    ]
    trained = cfa("train", "-c", "all", *place.stores, "--json", "-")
    assert [one["category"] for one in trained.document["categories"]] == ["twill", "weave"]
    evaluated = cfa("evaluate", "-c", "all", "--data-root", place.data, *place.model, "--json", "-")
    assert evaluated.code == 0, evaluated
    assert [one["generation"] for one in evaluated.document["categories"]] == ["0002", "0002"]


def test_one_of_all_categories_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6, test=2)
    for name in ("aida", "twill"):
        made_up.write_category(place.data, name, train=6, test=2)
    good = place.data / "twill" / "train" / "good"
    good.rename(tmp_path / "good")
    good.mkdir()

    def check(outcome: made_up.Outcome, failed: str, says: str, done: list[str]) -> None:
        assert outcome.code == 1, outcome
        lines = [line for line in outcome.err.splitlines() if line.startswith("cfa-index: expected ")]
        assert len(lines) == 1, outcome
        assert failed in lines[0]
        assert says in lines[0]
        assert [one["category"] for one in outcome.document["categories"]] == done

    check(place.build("--json", "-", category="all"), "twill", "an empty folder", ["aida", "weave"])
    good.rmdir()
    (tmp_path / "good").rename(good)
    assert place.build(category="twill").code == 0
    (place.models / "twill" / "current").write_text("")
    train = ("train", "-c", "all", *place.stores, "--json", "-")
    check(cfa(*train), "twill", "as it was written", ["aida", "weave"])
    evaluate = ("evaluate", "-c", "all", "--data-root", place.data, *place.model, "--json", "-")
    evaluated = cfa(*evaluate)
    check(evaluated, "twill", "as it was written", ["aida", "weave"])
    assert "image AUROC" in evaluated.err


def test_a_plain_folder_of_good_images(tmp_path: Path) -> None:
    place = Workplace(root=tmp_path)
    made_up.write_good(tmp_path / "good parts", 6)
    named = cfa("build", "--normals", tmp_path / "good parts", *place.stores, *QUICK, "--json", "-")
    assert named.code == 0, named
    assert named.document["category"] == "good parts"
    other = cfa(
        *("build", "--normals", tmp_path / "good parts", "-c", "bracket"),
        *(*place.stores, *QUICK, "--json", "-"),
    )
    assert other.document["category"] == "bracket"
    assert (place.models / "bracket" / "current").is_file()


def test_ratios_are_fractions_or_decimals(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6, test=1)
    options = (*QUICK[:-2], "--method", "mean", "--json", "-")
    build = ("build", "-c", "weave", *place.everything, *options)
    fraction = cfa(*build, "--gamma-d", "1/4", "--gamma-c", "1/4", "--held-out", "1/3").document
    decimal = cfa(
        *build, "--gamma-d", "0.25", "--gamma-c", "0.25", "--held-out", "0.3333333333333333"
    ).document
    assert fraction["spec"] == decimal["spec"]
    assert (fraction["width"], fraction["memories"]) == ((64 + 128) // 4, 16 * 16 // 4)
    assert cfa(*build, "--gamma-d", "4").error_line.endswith("write 1/4 or 0.25, not 4")
    for word in ("a/b", "1/0", "quarter"):
        assert cfa(*build, "--gamma-d", word).code == 2


def test_patchcore_s_bank_is_a_share_of_all_patches(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=5, test=1)
    build = ("build", "-c", "weave", *place.everything, *QUICK[:-2], "--json", "-")
    outcome = cfa(*build, "--method", "coreset", "--bank-share", "1/100")
    assert outcome.document["memories"] == round(4 * 256 / 100)
    assert outcome.document["spec"]["bank"]["method"] == "coreset"
    assert "coreset: 1,024 patches held in " in outcome.err
    assert cfa(*build, "--method", "full").document["memories"] == 4 * 256


def test_weights_can_be_left_out_of_the_model_and_handed_over(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from cfa_index import load_backbone

    place = made_up.workplace(tmp_path, train=6, test=1)
    weights, others = tmp_path / "resnet18.safetensors", tmp_path / "others.safetensors"
    for seed, file in enumerate((weights, others)):
        save_file(load_backbone("resnet18", (4, 8), weights="random", seed=seed).state_tensors(), file)
    options = ("--backbone", "resnet18", "--strides", "4,8", "--size", "64", "--bank-size", "16")
    built = cfa(
        *("build", "-c", "weave", *place.everything, *options),
        *("--weights", weights, "--no-embed-weights", "--json", "-"),
    )
    assert built.code == 0, built
    assert built.document["weights"] == "file resnet18.safetensors"
    assert "backbone.safetensors" not in made_up.tree(Path(built.document["path"]))
    image = place.data / "weave" / "test" / "hole" / "000.png"
    query = ("query", image, "-c", "weave", *place.model, "-o", tmp_path / "query")
    assert cfa(*query, "--weights", weights).code == 0
    wrong = cfa(*query, "--weights", others).error_line
    assert "hand over the same file with --weights" in wrong
    trained = cfa("train", "-c", "weave", *place.stores, "--weights", weights)
    assert trained.code == 0, trained
    assert torch.get_num_threads() == 1  # as --threads asks


def test_embedded_weights_make_the_file_needless(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from cfa_index import load_backbone

    place = made_up.workplace(tmp_path, train=6, test=1)
    weights = tmp_path / "w.safetensors"
    save_file(load_backbone("resnet18", (4, 8), weights="random").state_tensors(), weights)
    options = ("--backbone", "resnet18", "--strides", "4,8", "--size", "64", "--bank-size", "16")
    assert cfa("build", "-c", "weave", *place.everything, *options, "--weights", weights).code == 0
    weights.unlink()
    image = place.data / "weave" / "test" / "hole" / "000.png"
    outcome = cfa("query", image, "-c", "weave", *place.model, "-o", tmp_path / "query")
    assert outcome.code == 0, outcome
    assert "warning" not in outcome.err  # these came from a file, whatever is in it


def test_query_names_its_pictures_apart_and_goes_on_after_a_broken_image(
    place: Workplace, tmp_path: Path
) -> None:
    one, two = tmp_path / "a" / "part.png", tmp_path / "b" / "part.png"
    for path in (one, two):
        made_up.write_image(path, made_up.texture(5))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    outcome = cfa(
        *("query", one, broken, two, "-c", "weave", *place.model),
        *("-o", tmp_path / "query", "--patches", "2", "--threshold", "0.5", "--json", "-"),
    )
    assert outcome.code == 3, outcome
    assert sorted(path.name for path in (tmp_path / "query").iterdir()) == [
        "part_2_query.png",
        "part_query.png",
    ]
    first, failed, second = outcome.document["images"]
    assert "0 bytes" in failed["error"]
    assert "broken.png" in outcome.err
    assert first["score"] == second["score"]
    assert (first["threshold"], first["is_anomalous"]) == (0.5, True)
    assert len(first["worst_patches"]) == 2


def test_query_never_writes_one_picture_over_another(place: Workplace, tmp_path: Path) -> None:
    names = ("a.png", "x/a.png", "a_1.png", "y/a_1.png", "y/A.png", "a_1_2.png")
    images = [made_up.write_image(tmp_path / name, made_up.texture(k)) for k, name in enumerate(names)]
    outcome = cfa("query", *images, "-c", "weave", *place.model, "-o", tmp_path / "query", "--json", "-")
    assert outcome.code == 0, outcome
    pictures = {image["picture"] for image in outcome.document["images"]}
    assert len({picture.casefold() for picture in pictures}) == len(names)
    assert {str(path) for path in (tmp_path / "query").iterdir()} == pictures


def test_the_version() -> None:
    from importlib.metadata import version

    outcome = cfa("--version")
    assert (outcome.code, outcome.out) == (0, f"cfa-index {version('cfa-index')}\n")


def test_help_shows_the_defaults_of_the_recommended_preset() -> None:
    from cfa_index import ModelSpec

    spec = ModelSpec()
    for command, group in (("build", spec.features), ("build", spec.bank), ("train", spec.train)):
        text = "".join(cfa(command, "--help", env={"COLUMNS": "400"}).out.split())
        shown = {"size_px", "size", "epochs", "learning_rate", "margin"} & set(group.to_dict())
        assert shown
        for name in shown:
            assert f"recommended:{getattr(group, name)}]" in text, name


def test_the_score_of_the_paper_can_be_asked_for(tmp_path: Path) -> None:
    place = made_up.workplace(tmp_path, train=6, test=1)
    assert place.build("--json", "-").document["spec"]["score"]["patch_score"] == "nearest"
    other = place.build("--patch-score", "certainty", "--json", "-").document
    assert other["spec"]["score"]["patch_score"] == "certainty"


def test_help_answers_without_torch_or_faiss() -> None:
    """In a process of its own, since this one has imported them; also for each command."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cfa_index_cli.main import app\n"
        "commands = ('build', 'train', 'query', 'score', 'evaluate', 'backbones', 'dataset', 'dataset rotate', 'demo')\n"
        "for words in ([], *(command.split() for command in commands)):\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0, words\n"
        "heavy = {'torch', 'torchvision', 'faiss', 'zarr', 'pyarrow', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_the_console_script_as_a_process_of_its_own(place: Workplace, tmp_path: Path) -> None:
    """Results on standard output, everything else on standard error; 2 for bad usage."""
    image = place.data / "weave" / "test" / "hole" / "001.png"
    command = [str(CONSOLE_SCRIPT), "query", str(image), "-c", "weave", *place.model]
    done = subprocess.run(
        [*command, "-o", str(tmp_path), "--json", "-"],
        capture_output=True,
        env=PROCESS,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["images"][0]["is_anomalous"] is True
    assert RANDOM_WARNING in done.stderr
    usage = subprocess.run(
        [str(CONSOLE_SCRIPT), "build", "--preset", "best"], capture_output=True, env=PROCESS, text=True
    )
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "recommended" in usage.stderr


def test_an_interrupt_ends_with_130_and_without_a_traceback(tmp_path: Path) -> None:
    """Control-C during the features; what is done stays, and the next run goes on from there."""
    place = made_up.workplace(tmp_path, train=60, test=1)
    events = tmp_path / "events"
    os.mkfifo(events)  # the command waits here until somebody reads: no race with its start
    process = subprocess.Popen(
        [CONSOLE_SCRIPT, "build", "-c", "weave", *place.everything, *QUICK, "--events", events],
        env=PROCESS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts us in the background hands down SIGINT as ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with events.open() as reader:
        reader.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    assert not made_up.leftovers(tmp_path)
    assert not (place.models / "weave" / "current").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["build", "-c", "x", "--preset", "best"],
        ["build", "-c", "x", "--geometry", "round"],
        ["build", "-c", "x", "--no-such-option"],
        ["build", "-c", "x", "--bank-size", "8", "--gamma-c", "1/4"],
        ["build", "-c", "x", "--bank-size", "8", "--bank-share", "1/4"],
        ["build", "-c", "x", "--gamma-c", "1/2", "--bank-share", "1/4"],
        ["build", "-c", "x", "--method", "full", "--bank-share", "1/4"],
        ["build", "-c", "x", "--strides", "8,x"],
        ["build"],
        ["build", "--normals", "good", "-c", "all"],
        ["build", "-c", "x", "--patch-score", "best"],
        ["train"],
        ["train", "-c", "x", "--radius", "wide"],
        ["score", "folder", "-c", "x"],
        ["forget"],
    ],
)
def test_bad_usage_is_exit_code_2(words: list[str]) -> None:
    outcome = cfa(*words)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_the_csv_says_what_the_parquet_parts_say(place: Workplace, tmp_path: Path) -> None:
    import csv

    folder = tmp_path / "in"
    made_up.write_good(folder, 3)
    (folder / "empty.png").write_bytes(b"")
    outcome = cfa("score", folder, "-c", "weave", *place.model, "-o", tmp_path / "out", "--json", "-")
    assert outcome.code == 3, outcome
    document = outcome.document
    assert (document["images"], document["rejected"]) == (4, 1)
    rows = pq.read_table(tmp_path / "out" / "parts" / "part-00000000.parquet").to_pylist()
    with (tmp_path / "out" / "scores.csv").open(newline="") as handle:
        read = list(csv.DictReader(handle))
    assert [row["uri"] for row in read] == [row["uri"] for row in rows]
    for text, row in zip(read, rows, strict=True):
        assert (text["score"] == "") == (row["score"] is None)
        if row["score"] is not None:
            assert float(text["score"]) == row["score"]
            assert text["is_anomalous"] == str(row["is_anomalous"])
        assert text["error"] == (row["error"] or "")
