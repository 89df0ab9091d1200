"""Decoders by name: options, and refusals that name what is missing."""

from __future__ import annotations

import pytest

from policies.decoding.table import allowed, check, make_decoder
from policies.hosted import Hosted
from policies.interfaces import Decoder, Need
from robot_stack import registry
from robot_stack.errors import ConfigError, PolicyError, RegistryError
from tests.decoding.made import ALL, Affine, ask, contract, session

NAMES = registry.names("decoder")


@pytest.mark.parametrize("name", NAMES)
def test_every_decoder_decodes_with_its_defaults(name: str) -> None:
    hosted = Hosted(Affine(contract()), Affine(contract(), 0.3))
    robot = session(name, hosted)
    assert isinstance(robot.decoder, Decoder)
    assert robot.decoder.name == name
    previous = -1
    for consumed in (0, 3, 1, 7, 2):
        previous, rows = ask(hosted, robot, previous, consumed, delay=2)
        assert rows.shape == (7, 2)
        assert rows.dtype == "float64"


def test_options_are_set_and_unknown_or_impossible_ones_refused() -> None:
    decoder = make_decoder("bid", {"samples": 9, "rho": 0.25})
    assert (decoder.samples, decoder.modes, decoder.rho) == (9, 3, 0.25)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"bid\.sample: unknown key; did you mean 'samples'"):
        make_decoder("bid", {"sample": 9})
    with pytest.raises(ConfigError, match=r"rho: 1.5 is out of range"):
        make_decoder("bid", {"rho": 1.5})
    with pytest.raises(ConfigError, match=r"samples >= 2 \* modes"):
        make_decoder("bid", {"samples": 5})
    with pytest.raises(RegistryError, match="did you mean 'rtc'"):
        make_decoder("rct")


def test_smoothing_goes_on_top_of_another_decoder() -> None:
    decoder = make_decoder("ema", {"newest": 0.25, "of": {"name": "bid", "options": {"modes": 2}}})
    assert decoder.of == make_decoder("bid", {"modes": 2})  # type: ignore[attr-defined]
    assert decoder.needs == {Need.SAMPLES, Need.CONTRAST}
    with pytest.raises(ConfigError, match="expected a decoder as"):
        make_decoder("ema", {"of": "bid"})
    with pytest.raises(ConfigError, match=r"ema\.of\.nam: unknown key"):
        make_decoder("ema", {"of": {"nam": "bid"}})
    with pytest.raises(ConfigError, match=r"of: unknown key"):
        make_decoder("bid", {"of": {"name": "ema"}})


NOTHING = {"receding_horizon", "ema", "temporal_ensemble"}


@pytest.mark.parametrize(
    ("gives", "weak", "expected"),
    [
        (frozenset(), False, NOTHING),
        (frozenset({Need.SAMPLES}), False, NOTHING | {"coherence"}),
        (frozenset({Need.SAMPLES}), True, NOTHING | {"coherence", "bid"}),
        (frozenset({Need.NOISE}), False, NOTHING | {"warm_start"}),
        (frozenset({Need.GRADIENTS}), False, NOTHING),
        (
            frozenset({Need.GRADIENTS, Need.SAMPLES}),
            False,
            NOTHING | {"coherence", "rtc"},
        ),
        (ALL, False, NOTHING | {"coherence", "warm_start", "rtc"}),
        (ALL, True, set(NAMES)),
    ],
)
def test_what_a_policy_gives_decides_what_it_allows(
    gives: frozenset[Need], weak: bool, expected: set[str]
) -> None:
    strong = Affine(contract(), gives=gives)
    hosted = Hosted(strong, Affine(contract()) if weak else None)
    assert set(allowed(hosted)) == expected
    for name in NAMES:
        if name in expected:
            check(make_decoder(name), hosted)
            continue
        with pytest.raises(PolicyError) as refused:
            check(make_decoder(name), hosted)
        text = str(refused.value)
        assert f"decoder {name} needs" in text
        assert "it allows" in text
        for other in expected:
            assert other in text.partition("it allows")[2]


def test_a_refusal_names_each_missing_need() -> None:
    hosted = Hosted(Affine(contract(), gives=frozenset({Need.NOISE})))
    with pytest.raises(PolicyError, match="needs contrast and samples, which policy closed_form"):
        check(make_decoder("bid_warm"), hosted)
    on_top = make_decoder("temporal_ensemble", {"of": {"name": "rtc"}})
    with pytest.raises(PolicyError, match="temporal_ensemble needs gradients and samples"):
        check(on_top, hosted)
