"""At a prompt and in a notebook a session says what was charged and what is left, and nothing that is secret."""

from __future__ import annotations

import html
import re
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad


def text_of(value: Any) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", value._repr_html_())).split())


def test_an_engine_its_session_and_its_loader_say_what_they_are() -> None:
    engine = hushgrad.PrivacyEngine()
    assert repr(engine) == "<PrivacyEngine, trains no model yet>"
    assert text_of(engine) == repr(engine)
    model = nn.Linear(3, 2)
    _, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(40, 3)), batch_size=8),
        target_epsilon=3.0,
        target_delta=1e-3,
        epochs=2,
        max_grad_norm=1.0,
    )
    (x,) = next(iter(loader))
    engine.session.backward(model(x).square().mean(1))
    optimizer.step()
    assert repr(engine) == "<PrivacyEngine of <Session, open: steps charged 1, steps left 9>>"
    assert (
        repr(loader)
        == "<PrivateLoader: 5 logical batches a pass, Poisson, every record independently with rate 0.2 in every step>"
    )
    shown = text_of(engine)
    assert shown.startswith("Private training of Linear state open steps charged 1 steps left 9 noise ")
    assert "clip rule FlatClipping(max_grad_norm=1.0) sampling Poisson, every record" in shown
    engine.session.close()
    assert "state closed" in text_of(engine)
