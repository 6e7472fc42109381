"""Scripts for Opacus train here after the diff of `hushgrad migrate`; what it cannot change it tells."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.errors import CrossSampleLeakError, InvalidArgumentError
from hushgrad.migration.script.migrate import migrate

SCRIPTS = Path(__file__).parent / "scripts"
NAMES = ["image_classifier", "text_classifier", "char_lstm"]


def run(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a script as a program; return its names."""
    (folder / "script.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path(str(folder / "script.py"), run_name="__main__")


def applied(before: str, diff: str) -> str:
    """Apply a unified diff, with every line of context looked at."""
    old, new, at = before.splitlines(keepends=True), [], 0
    for line in diff.splitlines(keepends=True)[2:]:
        if line.startswith("@@"):
            found = re.match(r"@@ -(\d+)", line)
            assert found is not None
            start = int(found[1]) - 1
            new += old[at:start]
            at = start
        elif line[0] == "+":
            new.append(line[1:])
        else:
            assert old[at] == line[1:]
            new += [old[at]] if line[0] == " " else []
            at += 1
    return "".join([*new, *old[at:]])


@pytest.mark.parametrize("name", [pytest.param(NAMES[0], marks=pytest.mark.slow), *NAMES[1:]])
def test_a_script_is_one_of_opacus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run((SCRIPTS / f"{name}.py").read_text(), tmp_path, monkeypatch)
    assert "ε = " in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_the_diff_leaves_no_name_of_opacus_and_nothing_to_do_by_hand(name: str) -> None:
    found = migrate((SCRIPTS / f"{name}.py").read_text())
    assert found.is_complete
    assert applied(found.before, found.diff("script.py")) == found.after
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(ast.parse(found.after))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not {module for module in imported if module and module.startswith("opacus")}
    assert migrate(found.after).after == found.after
    assert not migrate(found.after).uses_opacus


def test_the_image_classifier_trains_privately_after_its_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = migrate((SCRIPTS / "image_classifier.py").read_text())
    run(applied(found.before, found.diff("script.py")), tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert "(ε = 8.00, δ = 0.001)" in out
    assert re.search(r"history \[\(PoissonSampled\(sampling_rate=0.25, noise_multiplier=0\.63\d*\), 8\)\]", out)


def test_the_text_classifier_with_ghost_clipping_trains_privately_after_its_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = migrate((SCRIPTS / "text_classifier.py").read_text())
    names = run(applied(found.before, found.diff("script.py")), tmp_path, monkeypatch)
    told = names["privacy_engine"].guarantee(delta=1e-3)
    assert told.private
    assert told.steps == 8
    assert "zero-out" in str(told)
    assert any("poisson_sampling=False stays, and epsilon rises" in note.what for note in found.notes)


def test_the_char_lstm_trains_privately_after_its_diff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = migrate((SCRIPTS / "char_lstm.py").read_text())
    run(applied(found.before, found.diff("script.py")), tmp_path, monkeypatch)
    expected = epsilon([(PoissonSampled(16 / 80, 1.0), 10)], 1e-3)
    assert f"Epoch=1 (ε = {expected:.2f}, δ = 0.001)" in capsys.readouterr().out


def test_padding_to_the_longest_of_the_batch_is_told_and_refused_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that pads to the longest record and takes the last place: one long record changes what others give."""
    text = (SCRIPTS / "char_lstm.py").read_text()
    found = migrate(
        text.replace("[longest, *(elem[0] for elem in batch)]", "[elem[0] for elem in batch]").replace("=0)[1:]", "=0)")
    )
    assert any("pad_sequence pads to the longest record" in note.what for note in found.notes)
    with pytest.raises(CrossSampleLeakError, match="pad all batches to one constant length"):
        run(found.after, tmp_path, monkeypatch)


HEAD = "from opacus import PrivacyEngine\n"
NEW = "from hushgrad import PrivacyEngine\n"

CHANGED = {
    "an import under another name": (
        "from opacus import PrivacyEngine as PE\nPE()\n",
        "from hushgrad import PrivacyEngine as PE\nPE()\n",
    ),
    "the whole module": (
        "import opacus\ne = opacus.PrivacyEngine()\n",
        "import hushgrad\ne = hushgrad.PrivacyEngine()\n",
    ),
    "the whole module beside its engine": (
        "import opacus\nfrom opacus import PrivacyEngine as PE\na, b = PE(), opacus.PrivacyEngine()\n",
        "import hushgrad\nfrom hushgrad import PrivacyEngine as PE\na, b = PE(), hushgrad.PrivacyEngine()\n",
    ),
    "an engine as a type": (
        HEAD + "def f(e: PrivacyEngine | None = None) -> PrivacyEngine:\n    return isinstance(e, PrivacyEngine)\n",
        NEW + "def f(e: PrivacyEngine | None = None) -> PrivacyEngine:\n    return isinstance(e, PrivacyEngine)\n",
    ),
    "its file": ("from opacus.privacy_engine import PrivacyEngine\n", NEW),
    "secure_mode": (HEAD + "e = PrivacyEngine(secure_mode=True)\n", NEW + "e = PrivacyEngine()\n"),
    "rdp stays": (HEAD + 'e = PrivacyEngine(accountant="rdp")\n', NEW + 'e = PrivacyEngine(accountant="rdp")\n'),
    "gdp goes": (HEAD + 'e = PrivacyEngine(accountant="gdp", secure_mode=a)\n', NEW + "e = PrivacyEngine()\n"),
    "first and last argument": (
        HEAD + "e.make_private(grad_sample_mode='ew', module=m, strict=True)\n",
        NEW + "e.make_private(module=m)\n",
    ),
    "arguments on lines of their own, with comments": (
        HEAD
        + "e.make_private(\n    module=m,\n    grad_sample_mode='ew',  # fast\n"
        + "    # the noise\n    noise_multiplier=1,\n)\n",
        NEW + "e.make_private(\n    module=m,\n    # the noise\n    noise_multiplier=1,\n)\n",
    ),
    "four values": (
        HEAD + "a, b, c, d = self.e.make_private(module=m, criterion=nn.CrossEntropyLoss())\nc(x)\n",
        NEW + "a, b, d = self.e.make_private(module=m)\nc = self.e.per_example(nn.CrossEntropyLoss())\nc(x)\n",
    ),
    "epsilon of the accountant": (
        HEAD + "self.engine.accountant.get_epsilon(delta=1e-5, alphas=a)\n",
        NEW + "self.engine.get_epsilon(delta=1e-5)\n",
    ),
    "history": (HEAD + "h = e.accountant.history[-1]\n", NEW + "h = e.session.charged[-1]\n"),
    "the wrapped model": (
        HEAD + "torch.save(model._module.state_dict(), p)\n",
        NEW + "torch.save(model.state_dict(), p)\n",
    ),
    "checkpoint": (
        HEAD + "e.save_checkpoint(path=p, module=m, optimizer=o)\n",
        NEW + "e.save_checkpoint(path=p)\n",
    ),
    "a checkpoint of something else": (HEAD + "trainer.save_checkpoint(p)\n", NEW + "trainer.save_checkpoint(p)\n"),
    "fix into the same name": (
        "from opacus.validators import ModuleValidator\nnet = ModuleValidator.fix(net)\n",
        "from hushgrad import make_private_ready\nmake_private_ready(net)\n",
    ),
    "fix of a new model": (
        HEAD + "from opacus.validators import ModuleValidator\nif 1:\n    net = ModuleValidator.fix(Net())\n",
        "from hushgrad import PrivacyEngine, make_private_ready\nif 1:\n    net = Net()\n    make_private_ready(net)\n",
    ),
    "validate alone in a block": (
        "from opacus.validators import ModuleValidator\nif check:\n    ModuleValidator.validate(net)\n",
        "if check:\n    pass\n",
    ),
    "what validate and is_valid return": (
        "from opacus.validators import ModuleValidator as V\ne = V.validate(net, strict=False)\nok = V.is_valid(net)\n",
        "from hushgrad import doctor\ne = list(doctor(net).problems)\nok = doctor(net).is_ready\n",
    ),
    "layers": (
        "from torch import nn\nfrom opacus.layers import DPLSTM, DPGRU as G\nx = [DPLSTM(1, 2), G(1, 2)]\n",
        "from torch import nn\nx = [nn.LSTM(1, 2), nn.GRU(1, 2)]\n",
    ),
    "a layer where torch is": (
        "import torch\nfrom opacus.layers import DPLSTM\nx = DPLSTM(1)\n",
        "import torch\nx = torch.nn.LSTM(1)\n",
    ),
    "a layer where nothing of torch is": (
        "from opacus.layers import DPLSTM\nx = DPLSTM(1)\n",
        "from torch import nn\nx = nn.LSTM(1)\n",
    ),
    "memory manager under the same name": (
        HEAD
        + "from opacus.utils.batch_memory_manager import BatchMemoryManager\n"
        + "e.make_private(module=m)\n"
        + "with BatchMemoryManager(data_loader=l, max_physical_batch_size=8, optimizer=o) as l:\n"
        + '    for x in l:\n        print("""a\n    b""")\n\n    # done\nprint(1)\n',
        NEW + "e.make_private(module=m, max_physical_batch_size=8)\n"
        'for x in l:\n    print("""a\n    b""")\n\n# done\nprint(1)\n',
    ),
    "line ends and letters of other scripts": (
        "# ε\r\nfrom opacus import PrivacyEngine\r\né = 'ü'; e.make_private(noise_generator='ö', module=m)\r\n",
        "# ε\r\nfrom hushgrad import PrivacyEngine\r\né = 'ü'; e.make_private(module=m)\r\n",
    ),
    "a file without a last line end": (HEAD + "e = PrivacyEngine(secure_mode=1)", NEW + "e = PrivacyEngine()"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_change_leaves_all_else_to_the_letter(name: str) -> None:
    before, after = CHANGED[name]
    found = migrate(before)
    assert found.after == after
    assert found.is_complete


BY_HAND = {
    "a batch size of another function": (
        "from opacus.utils.batch_memory_manager import BatchMemoryManager\n"
        "def train(size):\n"
        "    with BatchMemoryManager(data_loader=a, max_physical_batch_size=size, optimizer=o) as b:\n"
        "        pass\ndef main():\n    e.make_private(module=m)\n",
        6,
        "pass max_physical_batch_size=size to make_private",
    ),
    "clipping": (HEAD + "e.make_private(module=m, clipping='adaptive')\n", 2, "QuantileClipping"),
    "an unknown argument": (HEAD + "e.make_private(module=m, **more)\n", 2, "leave it out"),
    "a criterion and three values": (HEAD + "a, b, c = e.make_private(module=m, criterion=k)\n", 2, "per_example"),
    "Opacus before 1.0": (
        HEAD + "e = PrivacyEngine(model, batch_size=1)\ne.attach(optimizer)\n",
        2,
        "make PrivacyEngine()",
    ),
    "attach": (HEAD + "e.attach(optimizer)\n", 2, "make_private"),
    "an accountant that is not known": (HEAD + "PrivacyEngine(accountant=name)\n", 2, "saddle-point"),
    "fix inside of something": (
        "from opacus.validators import ModuleValidator\nnet = ModuleValidator.fix(net).to(device)\n",
        2,
        "hushgrad.make_private_ready(model)",
    ),
    "per-example gradients": (HEAD + "print(p.grad_sample)\n", 2, "session.backward(losses)"),
    "skipping": (HEAD + "optimizer.signal_skip_step()\n", 2, "take it away"),
    "the accountant": (HEAD + "print(len(e.accountant))\n", 2, "engine.guarantee(delta)"),
    "Opacus' epsilon of old": (HEAD + "a, b = e.accountant.get_privacy_spent(delta=1)\n", 2, "returns epsilon alone"),
    "a function of Opacus": (
        "from opacus.accountants.utils import get_noise_multiplier\nget_noise_multiplier(target_epsilon=1)\n",
        2,
        "calibrate_noise_multiplier",
    ),
    "something nobody knows": ("from opacus.utils import tensor_utils\ntensor_utils.f()\n", 2, "coming-from-opacus.md"),
    "a schedule": ("from opacus.schedulers import StepNoise\nStepNoise(o)\n", 2, "DPSGD"),
    "everything": ("from opacus import *\n", 1, "import each name"),
    "the old file of a checkpoint": (HEAD + "e.load_checkpoint(path=p, module=m)\n", 2, "read_checkpoint"),
    "a name that is also assigned": (HEAD + "PrivacyEngine = None\n", 1, "rename one"),
    "several of them": (
        HEAD
        + "from opacus.utils.batch_memory_manager import BatchMemoryManager\n"
        + "with BatchMemoryManager(data_loader=a, max_physical_batch_size=8) as b, open(p) as f:\n    pass\n",
        3,
        "the loader of make_private itself",
    ),
    "an engine of a partial": (HEAD + "e = partial(PrivacyEngine, secure_mode=True)()\n", 2, "by its own name"),
    "an engine of a partial, by its module": (
        "import opacus\ne = partial(opacus.PrivacyEngine)()\n",
        2,
        "by its own name",
    ),
    "an engine under another name": (HEAD + "E = PrivacyEngine\nE(secure_mode=True)\n", 2, "by its own name"),
    "an engine as a base": (HEAD + "class E(PrivacyEngine):\n    pass\n", 2, "by its own name"),
    "make_private of a partial": (HEAD + "f = partial(e.make_private, noise_generator=g)\n", 2, "by its own name"),
    "the module as a value beside its engine": ("import opacus\n" + HEAD + "f(opacus)\n", 1, "import hushgrad"),
    "several modules beside the engine": ("import torch, opacus\n" + HEAD + "PrivacyEngine()\n", 1, "import hushgrad"),
    "fastDP": ("from fastDP import PrivacyEngine\ne = PrivacyEngine(model)\n", 1, "make_private(module="),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_changed_safely_is_left_as_it_is_and_told_with_its_line_and_its_cure(name: str) -> None:
    """Guarantee: what cannot be changed safely is left as it is, and told with its line and its cure."""
    text, line, cure = BY_HAND[name]
    found = migrate(text)
    told = [note for note in found.notes if note.by_hand and cure in f"{note.what} {note.cure}"]
    assert told, found.notes
    assert told[0].line == line
    assert not found.is_complete
    ast.parse(found.after)


def test_a_dropout_between_steps_is_told() -> None:
    found = migrate("from torch import nn\nfrom opacus.layers import DPLSTM\nDPLSTM(1, 2, dropout=0.5)\n")
    assert any("regularises less" in note.what for note in found.notes)


def test_attention_is_always_told() -> None:
    found = migrate("from torch import nn\nfrom opacus.layers import DPMultiheadAttention as A\nA(4, 2)\n")
    assert "nn.MultiheadAttention(4, 2)" in found.after
    assert any("reproduce_attention" in note.cure for note in found.notes)


def test_a_script_without_opacus_stays_as_it_is() -> None:
    text = "import torch\nmodel._module.fit()\n"
    found = migrate(text)
    assert (found.after, found.notes, found.uses_opacus, found.diff("a.py")) == (text, (), False, "")


@pytest.mark.parametrize("text", ["def (", "import opacus\rx = 1\r", "\0", '{"cells": [], "nbformat": 4} %%'])
def test_what_is_no_python_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        migrate(text)
    assert caught.value.where == "FILE"
    assert caught.value.cure
