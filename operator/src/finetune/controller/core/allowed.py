"""What of the cluster's own a run may choose for itself: images, service accounts, labels of its pods.

Whoever may create runs may use what a pod may use; so each of these is refused unless the administrator lists it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic.alias_generators import to_camel

from finetune.api.trainingrun import TrainingRunSpec

from .pod_defaults import Text, from_json

VALUE = "trainer.allowed"
"""Where the chart's values have the lists."""


class Allowed(BaseModel):
    """The administrator's lists; all are empty until somebody fills them."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    images: tuple[Text, ...] = ()
    """References as `spec.image` has them; what ends with `*` stands for all that begin so."""
    service_account_names: tuple[Text, ...] = ()
    """Names as `spec.serviceAccountName` has them, in every namespace."""
    pod_label_prefixes: tuple[Text, ...] = ()
    """Beginnings of the keys of `spec.podLabels`, such as `cost.example.com/`."""

    def refusal_of(self, spec: TrainingRunSpec) -> str | None:
        """Which field asks for more than is allowed, and where that is listed; None when nothing does."""
        if spec.image is not None and not any(_matches(spec.image, each) for each in self.images):
            return _refused("image", spec.image, "images", self.images)
        account = spec.service_account_name
        if account is not None and account not in self.service_account_names:
            return _refused("serviceAccountName", account, "serviceAccountNames", self.service_account_names)
        for key in spec.pod_labels:
            if not any(key.startswith(prefix) for prefix in self.pod_label_prefixes):
                return _refused("podLabels", key, "podLabelPrefixes", self.pod_label_prefixes)
        return None


def _matches(image: str, pattern: str) -> bool:
    return image.startswith(pattern[:-1]) if pattern.endswith("*") else image == pattern


def _refused(field: str, value: str, key: str, allowed: tuple[str, ...]) -> str:
    listed = ", ".join(allowed) if allowed else "nothing"
    return f"spec.{field}: {value} is not allowed; the administrator's list ({VALUE}.{key} of the chart) has: {listed}"


AllowedFromEnvironment = Annotated[Allowed, BeforeValidator(from_json)]
"""The lists as a variable of the environment holds them: a JSON document."""
