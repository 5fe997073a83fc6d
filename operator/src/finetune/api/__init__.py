"""The TrainingRun API: models, conditions and reasons, and the CustomResourceDefinition made from them."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingRun"
PLURAL = "trainingruns"
