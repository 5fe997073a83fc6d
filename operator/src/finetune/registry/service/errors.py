"""What is wrong with a request as HTTP."""

from __future__ import annotations

from finetune.registry.errors import RegistryFault


class LengthRequired(RegistryFault):
    """A file is sent without saying how long it is."""

    status = 411
    reason = "LengthRequired"

    def __init__(self) -> None:
        super().__init__(
            "the request does not say how many bytes come", hint="send a Content-Length, not a chunked body"
        )


class SlowSender(RegistryFault):
    """The next bytes of an upload did not come in time."""

    status = 408
    reason = "RequestTimeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no byte came for {seconds:g} s", hint="send the file once more")
