"""What the importers refuse: one line that says what was got, and nothing written."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from pipeline import cli
from sr3_core.artifacts.bundle import ModelBundle
from sr3_core.errors import BadInput
from sr3_core.importers import _foreign, janspiry, novwaul
from tests.foreign_states import import_janspiry, import_novwaul, janspiry_config, janspiry_state, novwaul_state


def test_a_wrong_config_names_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing \(down\.1\.block.*of another shape|of another shape") as refused:
        import_janspiry(tmp_path, "sr3", True, res_blocks=2)
    assert "missing" in str(refused.value) and "config.json" in str(refused.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("denoise_fn.ups.1.res_block.res_conv.bias"), r"1 missing \(up\.1\.block\.shortcut\.bias\)"),
        (lambda s: s.update({"denoise_fn.extra.weight": torch.zeros(2)}), r"1 extra \(denoise_fn\.extra\.weight\)"),
        (lambda s: s.update({"denoise_fn.downs.0.bias": torch.zeros(2)}), r"denoise_fn\.downs\.0\.bias \[2\] instead of \[16\]"),
        (lambda s: s["denoise_fn.downs.0.bias"].fill_(math.nan), "denoise_fn.downs.0.bias is not finite"),
        (lambda s: s.update({"betas": torch.linspace(1e-6, 2e-2, 2000)}), "2000 betas from 1e-06 to 0.02"),
        (lambda s: s.update({"betas": torch.linspace(1e-6, 1e-2, 100)}), "100 betas"),
    ],
)
def test_a_state_that_does_not_fit_writes_nothing(tmp_path: Path, change: Any, message: str) -> None:
    state = janspiry_state("sr3", True)
    change(state)
    with pytest.raises(BadInput, match=message):
        import_janspiry(tmp_path, "sr3", True, state=state)
    assert not (tmp_path / "bundle").exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no file"):
        novwaul.import_weights(str(tmp_path / "absent.pt"), str(tmp_path / "bundle"), low=4, high=16)
    (tmp_path / "last.pt").write_bytes(b"not a pickle")
    with pytest.raises(BadInput, match="cannot be read"):
        novwaul.import_weights(str(tmp_path / "last.pt"), str(tmp_path / "bundle"), low=4, high=16)
    with pytest.raises(BadInput, match="without net"):
        import_novwaul(tmp_path, {"ema_net": novwaul_state()}, averaged=False)
    with pytest.raises(BadInput, match=r"without model\.conv1"):
        import_novwaul(tmp_path, {"ema_net": {"weight": torch.zeros(1)}})
    state = novwaul_state()
    state["alphas_bar"] = torch.linspace(0.999, 0.1, 1000)
    with pytest.raises(BadInput, match="not of a linear table"):
        import_novwaul(tmp_path, {"ema_net": state})
    assert not (tmp_path / "bundle").exists()


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    """Reading a file of weights never runs what is in it."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.write_text, (tmp_path / "ran", "it ran"))

    torch.save({"ema_net": Trap()}, tmp_path / "last.pt")
    with pytest.raises(BadInput, match="cannot be read"):
        novwaul.import_weights(str(tmp_path / "last.pt"), str(tmp_path / "bundle"), low=4, high=16)
    assert not (tmp_path / "ran").exists()


def test_a_bundle_that_is_there_is_left_alone(tmp_path: Path) -> None:
    import_novwaul(tmp_path)
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    with pytest.raises(BadInput, match="holds a bundle already"):
        import_novwaul(tmp_path)
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before


def test_configs_that_say_too_little(tmp_path: Path) -> None:
    torch.save(janspiry_state("sr3", True), tmp_path / "gen.pth")
    config = tmp_path / "config.json"
    for text, message in (
        ("{", "not JSON"),
        ("{}", "without model.which_model_G"),
        (json.dumps({"model": {"which_model_G": "sr4"}}), "sr3"),
    ):
        config.write_text(text)
        with pytest.raises(BadInput, match=message):
            janspiry.import_weights(str(tmp_path / "gen.pth"), str(config), str(tmp_path / "bundle"))
    with pytest.raises(BadInput, match="no config"):
        janspiry.import_weights(str(tmp_path / "gen.pth"), str(tmp_path / "absent.json"), str(tmp_path / "bundle"))


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize(("kind", "other"), [("sr3", "ddpm"), ("ddpm", "sr3")])
def test_each_kind_has_names_of_its_own(tmp_path: Path, kind: str, other: str, low: bool) -> None:
    level = {"sr3": "noise_level_mlp", "ddpm": "time_mlp"}
    with pytest.raises(BadInput, match=rf"missing \(embedding.*extra \(denoise_fn\.{level[other]}\.1\.weight"):
        import_janspiry(tmp_path / "other", kind, low, state={**janspiry_state(other, low), "betas": janspiry_state(kind, low)["betas"]})
    both = janspiry_state(kind, low)
    both |= {name: torch.zeros(1) for name in janspiry_state(other, low) if f"{level[other]}." in name or ".mlp.1" in name}
    with pytest.raises(BadInput, match=rf"does not fit the network: .*extra \(.*denoise_fn\.{level[other]}"):
        import_janspiry(tmp_path / "both", kind, low, state=both)
    assert not list(tmp_path.glob("*/bundle"))


def test_a_second_tensor_of_one_place_is_extra(tmp_path: Path) -> None:
    """The first stays, whatever the second is; names that differ by a prefix alone are told apart before."""
    state = janspiry_state("sr3", True)
    made = janspiry.stage(janspiry_config("sr3", True), "config.json")
    doubled = {**state, "again": torch.zeros(16)}
    network = {name: tensor for name, tensor in doubled.items() if name == "again" or janspiry.NAMES["sr3"](name)}
    fit = _foreign.fitted(made, network, lambda name: "conv_in.bias" if name == "again" else janspiry.NAMES["sr3"](name))
    assert fit.extra == ["again"] and torch.equal(fit.state["conv_in.bias"], state["denoise_fn.downs.0.bias"])
    for prefix in ("", "module.denoise_fn."):
        with pytest.raises(BadInput, match=r"with denoise_fn\.downs\.0\.bias twice"):
            import_janspiry(tmp_path / f"b{len(prefix)}", "sr3", True, state={**state, f"{prefix}downs.0.bias": torch.zeros(16)})


def test_prefixes_and_shared_memory_are_no_obstacle(tmp_path: Path) -> None:
    state = janspiry_state("sr3", True)
    first = ModelBundle.load(import_janspiry(tmp_path / "a", "sr3", True, state=state)).network.state_dict()
    bare = {f"module.{name.removeprefix('denoise_fn.')}": tensor for name, tensor in state.items()}
    second = ModelBundle.load(import_janspiry(tmp_path / "b", "sr3", True, state=bare)).network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    state["denoise_fn.mid.1.res_block.block1.block.0.weight"] = state["denoise_fn.mid.0.res_block.block1.block.0.weight"]
    tied = ModelBundle.load(import_janspiry(tmp_path / "c", "sr3", True, state=state)).network.state_dict()
    assert torch.equal(tied["middle.1.block.norm_in.weight"], first["middle.0.block.norm_in.weight"])


def leaves(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The place of every value and every section of a config."""
    if not isinstance(content, dict):
        return [path]
    return [*([path] if path else []), *(place for key, value in content.items() for place in leaves(value, (*path, key)))]


JUNK = [None, "x", "", True, -1, 0, 1.5, math.nan, math.inf, 10**30, [], [None], ["x"], [0], {}, {"x": 1}]
TAKEN = {  # what is a value there, however odd it looks
    "model.diffusion.conditional": [], "model.unet.norm_groups": [None], "model.unet.dropout": [0], "model.unet.attn_res": [[]],
    "train.optimizer.lr": [1.5],
}  # fmt: skip
READ = [place for place in leaves(janspiry_config("sr3", True)) if place[-1] != "channels"]  # that code's config says it twice


@pytest.mark.parametrize("place", READ, ids=".".join)
def test_no_value_of_a_config_goes_unread(tmp_path: Path, place: tuple[str, ...]) -> None:
    """Of the wrong kind, out of range or not there: one line that names the config."""
    (tmp_path / "gen.pth").write_bytes(b"")
    for junk in [*JUNK, "absent"]:
        values = copy.deepcopy(janspiry_config("sr3", True))
        section = values
        for key in place[:-1]:
            section = section[key]
        section[place[-1]] = junk
        if junk == "absent":
            del section[place[-1]]
        known = TAKEN.get(".".join(place), [])
        if any(junk is value or (junk == value and not isinstance(junk, bool)) for value in known):
            continue
        if (junk is True and place[-1] == "conditional") or (junk == "absent" and place[-1] == "norm_groups"):
            continue
        with pytest.raises(BadInput) as refused:
            made = janspiry.stage(values, "config.json")
            _foreign.fitted(made, {}, lambda name: name)
            pytest.fail(f"{'.'.join(place)} = {junk!r} was taken")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 500, str(refused.value)


def test_norm_groups_that_are_not_given_are_32_as_in_that_code() -> None:
    for norm_groups, expected in ((None, 32), (8, 8)):
        made = janspiry.stage(janspiry_config("sr3", True, norm_groups=norm_groups, inner_channel=32), "config.json")
        assert made.model.options["norm_groups"] == expected


def test_attention_that_the_config_asks_for_needs_no_other_opt_in() -> None:
    values = janspiry_config("sr3", True, attn_res=[128])
    values["model"]["diffusion"]["image_size"] = 128
    assert janspiry.stage(values, "config.json").model.options["attention_max_side"] == 128
    assert "attention_max_side" not in janspiry.stage(janspiry_config("sr3", True), "config.json").model.options


@pytest.mark.parametrize("phase", ["train", "val"])
def test_a_schedule_that_leaves_no_signal_is_named(phase: str) -> None:
    values = copy.deepcopy(janspiry_config("sr3", True))
    values["model"]["beta_schedule"][phase] = {**values["model"]["beta_schedule"][phase], "schedule": "jsd"}
    with pytest.raises(BadInput, match=rf"config\.json: model\.beta_schedule\.{phase}\.schedule jsd, whose last step leaves no signal"):
        janspiry.stage(values, "config.json")


ODD_TENSORS: list[tuple[str, Any]] = [
    ("nothing", None), ("text", "x"), ("list", [1.0]), ("number", 1.0), ("scalar", torch.tensor(0.5)), ("empty", torch.zeros(0)),
    ("row", torch.zeros(7)), ("matrix", torch.full((3, 5), 0.5)), ("no channels", torch.zeros(0, 6, 3, 3)),
    ("deep", torch.zeros(1, 2, 3, 4, 5)),
    ("complex", torch.zeros(16, dtype=torch.complex64)), ("sparse", torch.eye(16).to_sparse()), ("truth", torch.ones(16, dtype=torch.bool)),
    ("vast", torch.zeros(1).expand(10**9, 6, 3, 3)), ("odd", torch.zeros(17, 5, 3, 3)),
]  # fmt: skip
ODD_VALUES: list[tuple[str, Callable[[torch.Tensor], Any]]] = [
    ("nan", lambda t: t * math.nan), ("infinite", lambda t: t + math.inf), ("too large for float32", lambda t: t.double() + 1e300),
    ("whole numbers", lambda t: t.long()), ("another shape", lambda t: t.flatten()[1:]), ("once more", lambda t: torch.cat([t, t])),
]  # fmt: skip
PLACES = {
    "sr3": ("denoise_fn.downs.0.weight", "denoise_fn.mid.0.attn.qkv.weight", "betas"),
    "novwaul": (
        "model.conv1.conv.weight",
        "model.emb.linear1.linear.weight",
        "model.emb.x",
        "model.down.0.conv2.conv.weight",
        "alphas_bar",
    ),
}


@pytest.mark.parametrize(("system", "name"), [(system, name) for system, names in PLACES.items() for name in names])
def test_odd_tensors_are_refused_in_one_line(tmp_path: Path, system: str, name: str) -> None:
    state = janspiry_state("sr3", True) if system == "sr3" else novwaul_state()
    assert name in state
    for what, odd in [*ODD_TENSORS, *((what, make(state[name])) for what, make in ODD_VALUES)]:
        changed = {**state, name: odd}
        with pytest.raises(BadInput) as refused:
            import_janspiry(tmp_path, "sr3", True, state=changed) if system == "sr3" else import_novwaul(tmp_path, changed)
            pytest.fail(f"{name}: {what} was taken")
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 1200, str(refused.value)
        assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "denoise_fn", "denoise_fn.", "denoise_fn.downs.x.conv.weight", "denoise_fn.downs.", "denoise_fn.downs.0.",
     "denoise_fn.downs.01.conv.weight", f"denoise_fn.downs.{'9' * 40}.conv.weight", "denoise_fn.ups.-1.conv.weight", 3, None, ("a", "b")],
)  # fmt: skip
def test_odd_names_are_extra(tmp_path: Path, name: Any) -> None:
    with pytest.raises(BadInput, match=r"1 extra|not tensors") as refused:
        import_janspiry(tmp_path, "sr3", True, state={**janspiry_state("sr3", True), name: torch.zeros(2)})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"\x80\x02N.", b"PK\x03\x04", b"{}", b"\x80\x02}q\x00.", b"\x80\x02]q\x00(K\x01"])
def test_damaged_files_of_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gen.pth").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        novwaul.import_weights(str(tmp_path / "gen.pth"), str(tmp_path / "bundle"), low=4, high=16)
    assert "gen.pth" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [{}, [], 3, None, "x", {"ema_net": None}, {"ema_net": {}}, {"ema_net": [1]}, {"ema_net": {"a": {}}}])
def test_files_that_hold_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(BadInput, match=r"last\.pt with") as refused:
        novwaul.import_weights(str(tmp_path / "last.pt"), str(tmp_path / "bundle"), low=4, high=16)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe\x00", b'{"model": 3}', b"// nothing"])
def test_damaged_configs(tmp_path: Path, content: bytes) -> None:
    torch.save(janspiry_state("sr3", True), tmp_path / "gen.pth")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"config\.json") as refused:
        janspiry.import_weights(str(tmp_path / "gen.pth"), str(tmp_path / "config.json"), str(tmp_path / "bundle"))
    assert "\n" not in str(refused.value)


def test_the_command_and_the_card_say_what_was_waived(tmp_path: Path) -> None:
    torch.save({"ema_net": novwaul_state()}, tmp_path / "last.pt")
    arguments = ["import-weights", "novwaul", str(tmp_path / "last.pt"), "--low", "4", "--high", "16", "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 0 and done.stdout == f"wrote {tmp_path / 'bundle'}\n"
    notes = done.stderr.splitlines()
    assert len(notes) == 2 and all(note.startswith("waived as published: ") and "novwaul/SR3" in note for note in notes)
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert all(f"- {note}\n" in card for note in notes)
    again = CliRunner().invoke(cli.main, arguments)
    assert again.exit_code == 2 and again.stderr.count("\n") == 1 and "holds a bundle already" in again.stderr
    import_janspiry(tmp_path / "b", "sr3", True)
    assert "waived" not in (tmp_path / "b" / "bundle" / "card.md").read_text()
