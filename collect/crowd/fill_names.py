"""Nicknames of a simulated fortnight, in the scripts that people write."""

from __future__ import annotations

import random

__all__ = ["nicknames"]

# In small letters where a script's capitals look like Latin ones.
OTHER_SCRIPTS = (
    "Zoë", "Jürgen", "Søren", "Łucja", "Nguyễn", "Çelik", "Ñandú", "Íris", "Björk", "Žofie",
    "ευρυδίκη", "νεφέλη", "ψάρι", "людмила", "цапля", "щегол", "жужа", "フクロウ", "さくら",
    "雪だるま", "小熊", "月亮船",
    "機器貓", "하늘바다", "고양이", "नीलकमल", "मयूर", "قمر", "بستان", "שחף",
    "ธารา", "հասմիկ", "ნინო",
)  # fmt: skip
FIRST = (
    "Ada", "Alba", "Anouk", "Arlo", "Bea", "Benno", "Caro", "Chidi", "Clio", "Dario", "Ebba",
    "Emre", "Enzo", "Fay", "Finn", "Gus", "Hana", "Ida", "Ines", "Ivo", "Jonah", "Juno", "Kai",
    "Keiko", "Lars", "Leni", "Levi", "Lupe", "Mads", "Mara", "Milo", "Nadia", "Nell", "Noor",
    "Odin", "Olive", "Otis", "Pavel", "Pia", "Quinn", "Rafa", "Remy", "Rosa", "Runa", "Sami",
    "Selma", "Taro", "Tess", "Theo", "Uma", "Vera", "Viggo", "Wanda", "Xenia", "Yara", "Yuki",
    "Zadie", "Zeno",
)  # fmt: skip
LAST = ("", " the Great", " B.", "-bot", " & Co", "ster", " from 4B", " W", " Junior", "zilla")


def nicknames(draw: random.Random, number: int) -> list[str]:
    """``number`` nicknames, no two of which look alike."""
    plain = [f"{first}{last}" for first in FIRST for last in LAST if "&" not in last]
    chosen = draw.sample(plain, number - len(OTHER_SCRIPTS)) + list(OTHER_SCRIPTS)
    draw.shuffle(chosen)
    return chosen
