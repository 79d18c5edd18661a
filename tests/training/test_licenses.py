"""Source and license of converted weights go from the file into teacher, cache, student, card, and whatever starts from them."""

import json
from dataclasses import asdict

from support import build

from mtkd_cache.cache.layout import licenses_of
from mtkd_cache.cache.reader import LogitCache
from mtkd_cache.evaluation.model_card import card_text
from mtkd_cache.models.checkpoints import write_tensors
from mtkd_cache.models.network import create_network
from mtkd_cache.models.weight_files import Origin
from mtkd_cache.training.student import train_student
from mtkd_cache.training.teachers import train_teachers

ORIGIN = Origin("SurgeNet", "CC BY-NC-SA 4.0", "saw the Dresden set")
TOLD = "CC BY-NC-SA 4.0 (weights: SurgeNet; saw the Dresden set)"


def test_a_license_goes_from_the_weights_to_the_card(organ_store, recipe, accelerator, tmp_path):
    path = tmp_path / "surgenet.safetensors"
    encoder = create_network("mininetv2", 1).encoder.state_dict()
    write_tensors(path, {f"encoder.{key}": value for key, value in encoder.items()}, {"origin": asdict(ORIGIN)})
    settings = recipe(f"teacher.weights={path}", "teacher.epochs=1", "student.epochs=1")
    trained = train_teachers(organ_store, tmp_path / "teachers", settings, accelerator)
    assert {record.licenses for record in trained.values()} == {(TOLD,)}
    assert {record.initial_weights["source"] for record in trained.values()} == {str(path)}
    assert not any(record.seen.complete for record in trained.values())  # whether the store's test samples were seen is unknown
    written = json.loads((tmp_path / "teachers/kidney/teacher.json").read_text())
    assert written["licenses"] == [TOLD]

    build(organ_store, tmp_path / "teachers", str(tmp_path / "cache.zarr"), settings, accelerator)
    cache = LogitCache.open(str(tmp_path / "cache.zarr"))
    assert {info["license"] for info in cache.manifest.teachers.values()} == {TOLD}
    assert train_student(organ_store, tmp_path / "kd", settings, accelerator, cache).licenses == (TOLD,)
    assert f"whose terms go on to it: {TOLD}\n" in card_text(tmp_path / "kd")
    assert f"whose terms go on to it: {TOLD}\n" in card_text(tmp_path / "teachers")
    again = recipe(f"student.weights={tmp_path / 'kd'}", "student.epochs=1")
    assert train_student(organ_store, tmp_path / "again", again, accelerator, None).licenses == (TOLD,)
    free = train_student(organ_store, tmp_path / "free", recipe("student.epochs=1"), accelerator, None)
    assert free.licenses is None and "license" not in json.dumps(free.to_json())
    assert "whose terms go on" not in card_text(tmp_path / "free")


def test_licenses_of_a_caches_teachers_of_their_members_and_of_logits_that_others_computed():
    own, external = (
        {"arch": "a", "license": "MIT (weights: x)"},
        {"arch": "external", "source": "nnU-Net", "license": "CC BY 4.0"},
    )
    mean = {"arch": "mean", "members": [own, {"arch": "b"}]}
    assert licenses_of({"kidney": mean, "tongue": external}) == {"MIT (weights: x)", "CC BY 4.0 (logits: nnU-Net)"}
