"""Files of embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcal.inference.index import Columns, read_index, write_index
from dcal.utils.errors import UserError


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_whatever_byte_is_damaged_it_is_one_sentence(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="the extra [parquet]")
    file = tmp_path / f"index.{suffix}"
    columns = Columns([f"{number}.jpg" for number in range(9)], None, None, None)
    write_index(file, [np.ones((9, 4), np.float32)], "float32", columns, [], {"run": "one"})
    whole, refused = file.read_bytes(), 0
    for position in range(0, len(whole), 2) if suffix == "npz" else range(4, 60):  # there, of the first page's header
        for value in (0, 255):
            file.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                read_index(file, "index")
            except UserError as error:
                assert str(error).startswith(f"index={file}: no index of dcal-extract (")
                refused += 1
    assert refused > 9
