"""Seeing and replacing the attention of a timm block without touching its code.

timm's blocks call `F.scaled_dot_product_attention`. Inside `with intercept(attend):` every such call goes to
`attend`, which sees queries, keys and values *after* qk-norm and rotary embedding. That is enough to record
an attention map (rollout), to append a partner's keys and values (PWCA), and to answer few rows from all
tokens (GLCA).

The mode has to be entered in the function that is differentiated: activation checkpointing runs that function
a second time in the backward pass, when a mode entered around the whole forward is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Attend = Callable[..., Tensor]
"""`attend(q_BHND, k_BHMD, v_BHMD, **options) -> (B, H, N, D)`, options as of `F.scaled_dot_product_attention`."""


class intercept(TorchFunctionMode):
    """Hands every scaled-dot-product attention called inside the `with` block to `attend`."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # A mode is switched off while its own handler runs, so `attend` may call the real function.
        handler = self.attend if func is F.scaled_dot_product_attention else func
        return handler(*args, **(kwargs or {}))
