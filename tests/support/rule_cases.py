"""The table of the CRD's rules: for each sentence, specs that keep the rule and specs that break it."""

from __future__ import annotations

from finetune.api import rules
from tests.support.rule_objects import (
    ABSENT,
    CONFIG_MAP,
    DPO,
    HUB,
    KTO,
    ON_A_CLAIM,
    PARENT,
    SQL,
    TEMPLATE,
    VOLUME,
    Case,
    mix,
    source,
    store,
)

NAME_MESSAGE = "must consist of lower-case letters, digits, '-' and '.', and start and end with a letter or digit"
OBJECT_NAME_MESSAGE = "must be the name of an object in the run's namespace: lower-case letters, digits, '-' and '.'"
KEY_MESSAGE = "must be a key of a ConfigMap or Secret: letters, digits, '-', '_' and '.'"
PATH_MESSAGE = (
    "must be a path from the root of the claim: no leading or trailing '/', no '..', no hidden names, "
    "only letters, digits, '-', '_' and '.' between the slashes"
)
PATTERN_MESSAGE = (
    "must be a file, a folder or a pattern from the root of the claim: no leading or trailing '/', no '..', no hidden "
    "names, only letters, digits, '-', '_', '.' and the wildcards *, ? and [...] between the slashes"
)

CASES = [
    Case(rules.ADD_METHOD, [{"method": "SFT"}], [{"method": ABSENT}]),
    Case(
        rules.ADD_BASE_MODEL,
        [{}, {"baseModel": {"hub": HUB}}, {"baseModel.chatTemplate": TEMPLATE}],
        [
            {"baseModel": ABSENT},
            {"baseModel": {}},
            {"baseModel": {"hub": HUB, "volume": VOLUME}},
            {"baseModel": {"chatTemplate": TEMPLATE}},
        ],
    ),
    Case(
        rules.ADD_DATASET,
        [
            {},
            CONFIG_MAP,
            SQL,
            {"dataset": {"volume": {"claimName": "data", "path": "a/rows.jsonl"}}},
            source("hub", repository="org/dataset", revision="v1", split="test"),
            store(credentialsSecretRef={"name": "store"}),
            mix({"registry": {"name": "docs"}}, ON_A_CLAIM, ON_A_CLAIM),
        ],
        [
            {"dataset.mix": [ON_A_CLAIM]},
            {"dataset": ABSENT},
            {"dataset": {}},
            {"dataset": {"columns": {"prompt": "q"}}},
            {"dataset.configMap": {"name": "docs", "key": "rows.jsonl"}},
            {**CONFIG_MAP, "dataset.volume": {"claimName": "data", "path": "rows.jsonl"}},
            {**SQL, "dataset.hub": {"repository": "org/dataset"}},
            {"dataset.objectStore": {"uri": "s3://bucket/rows.jsonl"}},
        ],
    ),
    Case(
        rules.ADD_MIXED,
        [mix(ON_A_CLAIM), mix({**ON_A_CLAIM, "columns": {"prompt": "q"}, "turns": "Merge"})],
        [mix({"weight": 1}, {**ON_A_CLAIM, "weight": 1}), mix({**ON_A_CLAIM, "registry": {"name": "docs"}})],
    ),
    Case(
        "set either weight or maxRows, not both",
        [mix({**ON_A_CLAIM, "weight": 1000}, {**ON_A_CLAIM, "weight": 1}, {**ON_A_CLAIM, "maxRows": 1})],
        [mix({**ON_A_CLAIM, "weight": 2, "maxRows": 9}, {**ON_A_CLAIM, "weight": 2})],
    ),
    Case(
        "only one source of dataset.mix may be of the registry, which records one dataset for each run: put the rows "
        "of the others on a claim, or into one dataset",
        [mix(ON_A_CLAIM, {"registry": {"name": "docs", "version": 2}})],
        [mix({"registry": {"name": "docs"}}, {"registry": {"name": "other"}})],
    ),
    Case(
        "each source of dataset.mix needs a name of its own",
        [mix({**ON_A_CLAIM, "name": "a"}, {**ON_A_CLAIM, "name": "b"}, ON_A_CLAIM)],
        [mix({**ON_A_CLAIM, "name": "a"}, ON_A_CLAIM, {**ON_A_CLAIM, "name": "a"})],
    ),
    Case(
        "one weight alone says nothing: give other sources of dataset.mix a weight, too, or use maxRows",
        [mix({**ON_A_CLAIM, "weight": 3}, {**ON_A_CLAIM, "weight": 1})],
        [mix({**ON_A_CLAIM, "weight": 3}), mix({**ON_A_CLAIM, "weight": 3}, {**ON_A_CLAIM, "maxRows": 9})],
    ),
    Case(
        "where one source of dataset.mix has a weight, each needs one, or maxRows",
        [mix(ON_A_CLAIM, {**ON_A_CLAIM, "maxRows": 9})],
        [mix({**ON_A_CLAIM, "weight": 3}, {**ON_A_CLAIM, "weight": 1}, ON_A_CLAIM)],
    ),
    Case(
        "training.earlyStoppingPatience needs held-out rows: set dataset.evaluation.percent or "
        "dataset.evaluation.maxRows above 0",
        [
            {"training.earlyStoppingPatience": 3},
            {"training.earlyStoppingPatience": 3, "dataset.evaluation": {"maxRows": 8}},
            {"dataset.evaluation": {"percent": 0}},
        ],
        [
            {"training.earlyStoppingPatience": 3, "dataset.evaluation": {"percent": 0}},
            {"training.earlyStoppingPatience": 3, "dataset.evaluation": {"maxRows": 0}},
        ],
    ),
    Case(
        rules.ONE_SHAPE,
        [
            {"dataset.columns": {"prompt": "q", "completion": "a"}},
            {"dataset.columns": {"messages": "chat", "tools": "functions"}},
            {**DPO, "dataset.columns": {"prompt": "q", "chosen": "a", "rejected": "b", "tools": "functions"}},
            {"dataset.columns": {"prompt": "q", "completion": "a", "tools": "functions"}},
            {**KTO, "dataset.columns": {"prompt": "q", "completion": "a", "label": "good"}},
            {**KTO, "dataset.columns": {"messages": "chat", "label": "good"}},
            {"dataset.columns": {"text": "body"}},
            {**DPO, "dataset.columns": {"messages": "chat", "chosen": "a"}},
        ],
        [
            {"dataset.columns": {"messages": "chat", "prompt": "q"}},
            {"dataset.columns": {"messages": "chat", "completion": "a"}},
            {**DPO, "dataset.columns": {"messages": "chat", "prompt": "q", "chosen": "a"}},
            {**DPO, "dataset.columns": {"completion": "a", "rejected": "b"}},
            {**DPO, "dataset.columns": {"label": "a", "rejected": "b"}},
            {"dataset.columns": {"text": "body", "prompt": "q"}},
            {"dataset.columns": {"text": "body", "system": "s"}},
        ],
    ),
    Case(
        "each field needs a column of its own",
        [{"dataset.columns": {"prompt": "completion", "completion": "prompt"}}],
        [
            {"dataset.columns": {"prompt": "text", "completion": "text"}},
            {**DPO, "dataset.columns": {"prompt": "q", "chosen": "answer", "rejected": "answer"}},
            {"dataset.columns": {"messages": "chat", "tools": "chat"}},
        ],
    ),
    Case(
        "dataset.columns.chosen and rejected are for the method DPO: leave them out, or set method: DPO",
        [{**DPO, "dataset.columns": {"chosen": "a"}}, {"dataset.columns": {"prompt": "q"}}, KTO],
        [
            {"dataset.columns": {"chosen": "a"}},
            {"dataset.columns": {"rejected": "a"}},
            {**KTO, "dataset.columns": {"chosen": "a"}},
            mix(ON_A_CLAIM, {**ON_A_CLAIM, "columns": {"chosen": "a"}}),
        ],
    ),
    Case(
        "dataset.columns.completion is for the methods SFT and KTO: map prompt, chosen and rejected, or set method: "
        "SFT",
        [{**DPO, "dataset.columns": {"messages": "a"}}, {**KTO, "dataset.columns": {"completion": "a"}}],
        [
            {**DPO, "dataset.columns": {"completion": "a"}},
            {**DPO, "dataset.columns": {"completion": "a", "prompt": "q"}},
        ],
    ),
    Case(
        "dataset.columns.text is for the method SFT: leave it out, or set method: SFT",
        [{"dataset.columns": {"text": "a"}}],
        [{**DPO, "dataset.columns": {"text": "a"}}, {**KTO, "dataset.columns": {"text": "a"}}],
    ),
    Case(
        "dataset.columns.label is for the method KTO: leave it out, or set method: KTO",
        [{**KTO, "dataset.columns": {"label": "a"}}],
        [
            {"dataset.columns": {"label": "a"}},
            {**DPO, "dataset.columns": {"label": "a"}},
            mix(ON_A_CLAIM, {**ON_A_CLAIM, "columns": {"label": "a"}}),
        ],
    ),
    Case(
        "kto is for the method KTO only: set method: KTO, or leave kto out",
        [{**KTO, "kto": {}}, {**KTO, "kto": {"desirableWeight": "1.5"}}, KTO],
        [{"kto": {}}, {**DPO, "kto": {"beta": "0.5"}}],
    ),
    Case(
        "training.batchSize must be 2 or more for the method KTO: it compares with another row's answer",
        [{**KTO, "training.batchSize": 2}, KTO, {"training.batchSize": 1}],
        [{**KTO, "training.batchSize": 1}],
    ),
    Case(
        "dpo is for the method DPO only: set method: DPO, or leave dpo out",
        [{**DPO, "dpo": {}}, {**DPO, "dpo": {"beta": "0.5"}}, DPO],
        [{"dpo": {}}, {"dpo": {"beta": "0.5"}}],
    ),
    Case(
        "labelSmoothing and loss: RobustSigmoid belong together: set both, or neither",
        [{**DPO, "dpo": {"loss": "RobustSigmoid", "labelSmoothing": "0.1"}}, {**DPO, "dpo": {"loss": "IPO"}}],
        [
            {**DPO, "dpo": {"labelSmoothing": "0.1"}},
            {**DPO, "dpo": {"loss": "Hinge", "labelSmoothing": "0.1"}},
            {**DPO, "dpo": {"loss": "RobustSigmoid"}},
        ],
    ),
    Case(
        rules.FROM_THE_PARENT,
        [
            {**DPO, **PARENT},
            {**PARENT, "parentAdapter.version": 3, "lora": {"dropoutPercent": 5}},
            {"lora": {"rank": 8, "alpha": 16, "targetModules": ["q_proj"], "variant": "DoRA"}},
        ],
        [
            {**PARENT, "lora": field}
            for field in ({"rank": 8}, {"alpha": 16}, {"targetModules": ["q_proj"]}, {"variant": "LoRA"})
        ],
    ),
    Case(
        "training.batchSize must be at least resources.gpus: each GPU needs an example of every step",
        [
            {"resources": {"gpus": 16}},
            {"resources": {"gpus": 4}, "training": {"batchSize": 4}},
            {"resources": {"gpus": 0}, "training": {"batchSize": 1}},
        ],
        [{"resources": {"gpus": 17}}, {"resources": {"gpus": 4}, "training": {"batchSize": 3}}],
    ),
    Case(
        "quantization needs a GPU: set resources.gpus to 1 or more, or quantization: None",
        [
            {"quantization": "NF4"},
            {"quantization": "Int8", "resources": {"gpus": 2}},
            {"quantization": "None", "resources": {"gpus": 0}},
        ],
        [{"quantization": "NF4", "resources": {"gpus": 0}}, {"quantization": "Int8", "resources.gpus": 0}],
    ),
    Case(
        PATTERN_MESSAGE,
        [
            source("volume", claimName="data", path=path)
            for path in ("rows.jsonl", "folder", "a/*.jsonl", "a/**/part-[0-9]?.parquet", "[!x]*.csv")
        ],
        [
            source("volume", claimName="data", path=path)
            for path in ("/rows", "a/", "../rows", "a/../b", ".hidden", "a b", "{a,b}", "-x")
        ],
    ),
    Case(
        "must be the address of an object, of several by wildcards, or of a folder by a slash at the end, such as "
        "s3://bucket/prefix/*.jsonl",
        [
            store(uri=uri)
            for uri in ("s3://bucket/a.jsonl", "s3://my.bucket-1/a/*/b?.parquet", "s3://bucket/", "s3://bucket/a b/")
        ],
        [
            store(uri=uri)
            for uri in (
                "s3://bucket",
                "https://bucket/a",
                "s3://Bucket/a",
                "s3://user:pw@bucket/a",
                "s3://bucket/a\n",
                "s3://bucket/\0",
            )
        ],
    ),
    Case(
        "must be the address of the store, such as https://minio.storage:9000",
        [store(endpoint=address) for address in ("https://minio.storage:9000", "http://10.0.0.1/s3")],
        [store(endpoint=address) for address in ("minio:9000", "ftp://minio", "https://", "https://user:pw@minio")],
    ),
    Case(
        "must be the name of a split, such as train",
        [source("hub", repository="org/dataset", split="test_sft")],
        [source("hub", repository="org/dataset", split=split) for split in ("-x", "a b", "train[:5]")],
    ),
    Case(
        "must be the name of a configuration, such as main",
        [source("hub", repository="org/dataset", configuration=name) for name in ("wikitext-103-raw-v1", "2022.en")],
        [source("hub", repository="org/dataset", configuration=name) for name in ("-x", "a b", "a/b")],
    ),
    Case(
        "must not contain the character NUL: no program can be given one",
        [{"dataset.columns": {"prompt": "my column\n"}}, {**SQL, "dataset.sql.query": "select '$(HOME)' --é"}],
        [{"dataset.columns": {"prompt": "a\0b"}}, {**SQL, "dataset.sql.query": "select 1\0"}],
    ),
    Case(
        "set exactly one of percent and maxRows (percent: 0 holds out nothing), or leave evaluation out, for 5 "
        "percent and at most 500 rows",
        [{"dataset.evaluation": {"percent": 10}}, {"dataset.evaluation": {"maxRows": 500}}],
        [{"dataset.evaluation": {"percent": 10, "maxRows": 500}}, {"dataset.evaluation": {}}],
    ),
    Case(
        "set either epochs or maxSteps, not both",
        [{"training.epochs": 2}, {"training.maxSteps": 100}],
        [{"training": {"epochs": 2, "maxSteps": 100}}],
    ),
    Case(
        "microBatchSize must be at most batchSize: it is the part of a batch that is computed at once",
        [{"training.microBatchSize": 16}, {"training": {"batchSize": 6, "microBatchSize": 4}}],
        [{"training.microBatchSize": 17}, {"training": {"batchSize": 6, "microBatchSize": 8}}],
    ),
    Case(
        "targetModules must be either [all-linear] or names of modules",
        [{"lora.targetModules": ["all-linear"]}, {"lora.targetModules": ["q_proj", "v_proj"]}],
        [{"lora.targetModules": ["all-linear", "q_proj"]}],
    ),
    Case(
        "targetModules must not contain lm_head: the output layer cannot be adapted",
        [{"lora.targetModules": ["q_proj"]}],
        [{"lora.targetModules": ["q_proj", "lm_head"]}],
    ),
    Case(
        "must be the name of a module, or all-linear",
        [{"lora.targetModules": ["model.layers.0.mlp.up_proj"]}],
        [{"lora.targetModules": ["a,b"]}, {"lora.targetModules": ["-x"]}],
    ),
    Case(
        "set either claimName, for a claim that exists, or claim, for a new one",
        [{"output.claimName": "adapters"}, {"output.claim": {"size": "5Gi"}}, {"output": {}}],
        [{"output": {"claimName": "adapters", "claim": {}}}],
    ),
    Case(
        "sharedMemory must be less than memory, for what is used of it counts as memory: raise memory, or lower "
        "sharedMemory (default: 2Gi)",
        [{"resources.memory": "4Gi"}, {"resources": {"memory": "3000Mi", "sharedMemory": "2Gi"}}],
        [{"resources.memory": "2Gi"}, {"resources": {"memory": "1Gi", "sharedMemory": "2000M"}}],
    ),
    Case(
        "spec.resumeFrom.run must be another run: this run goes on from its own checkpoints by itself",
        [{"resumeFrom": {"run": "another"}}],
        [{"resumeFrom": {"run": "rules"}}],
    ),
    Case(
        "must be a whole number of bytes with a unit, such as 16Gi or 512Mi",
        [{"resources.memory": "16G"}, {"output.claim": {"size": "1Ti"}}],
        [
            *({"resources.memory": value} for value in ("16GB", "1.5Gi", "16", 16, 17179869184)),
            *({"output.claim": {"size": value}} for value in ("0Gi", 20)),
        ],
    ),
    Case(
        "must be a resource of a device plugin, such as nvidia.com/gpu",
        [{"resources.gpuResourceName": "nvidia.com/mig-1g.5gb"}, {"resources.gpuResourceName": "amd.com/gpu"}],
        [
            {"resources.gpuResourceName": name}
            for name in (
                *("memory", "hugepages-2Mi", "kubernetes.io/gpu", "a.kubernetes.io/gpu", "requests.nvidia.com/gpu"),
                *(f"nvidia.com/{'g' * 64}", f"{'a.' * 122}b/gpu", "nvidia/gpu", "nvidia..com/gpu"),
            )
        ],
    ),
    Case(
        "value must be left out when operator is Exists",
        [{"scheduling.tolerations": [{"key": "gpu", "operator": "Exists"}]}],
        [{"scheduling.tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]}],
    ),
    Case(
        "operator must be Exists when there is no key",
        [
            {"scheduling.tolerations": [{"operator": "Exists"}]},
            {"scheduling.tolerations": [{"key": "gpu", "value": "x"}]},
        ],
        [{"scheduling.tolerations": [{"value": "x"}]}, {"scheduling.tolerations": [{"key": ""}]}],
    ),
    Case(
        "effect must be NoExecute when tolerationSeconds is set",
        [{"scheduling.tolerations": [{"key": "a", "effect": "NoExecute", "tolerationSeconds": 5}]}],
        [
            {"scheduling.tolerations": [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 5}]},
            {"scheduling.tolerations": [{"key": "a", "tolerationSeconds": 5}]},
        ],
    ),
    Case(
        "must be the key of a taint, such as nvidia.com/gpu",
        [{"scheduling.tolerations": [{"key": f"{'a' * 253}/{'b' * 63}"}]}],
        [
            {"scheduling.tolerations": [{"key": key}]}
            for key in ("a b", "a..b/x", "a" * 64, f"{'a' * 254}/x", "A.com/x")
        ],
    ),
    Case(
        "must be the value of a taint: letters, digits, '-', '_' and '.'",
        [{"scheduling.tolerations": [{"key": "a", "value": value}]} for value in ("", "a.B_c-1")],
        [{"scheduling.tolerations": [{"key": "a", "value": value}]} for value in ("a b", "-a", "a/b")],
    ),
    Case(
        "every key must be the key of a node's label",
        [{"scheduling.nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4", "zone": ""}}],
        [
            {"scheduling.nodeSelector": {key: "c"}}
            for key in ("a b", "a..b/x", "a" * 64, f"{'a.' * 127}b/x", "-a", "a/b/c", "A.com/x", "/x", "x/", "")
        ],
    ),
    Case(
        "every value must be the value of a node's label",
        [{"scheduling.nodeSelector": {"a": "b.c_d-e"}}],
        [{"scheduling.nodeSelector": {"a": "b c"}}, {"scheduling.nodeSelector": {"a": "-b"}}],
    ),
    Case(
        "must be an image, such as registry.example.com/ml/trainer:1 or ...@sha256:...",
        [{"image": "localhost:5000/ml/trainer:1"}, {"image": f"trainer@sha256:{'a' * 64}"}],
        [{"image": value} for value in ("-x", "a b", "a\nb", "$(A)")],
    ),
    Case(
        "every key must be the key of a label",
        [{"podLabels": {"cost.example.com/team": "ml", "team": ""}}],
        [{"podLabels": {key: "c"}} for key in ("a b", "a..b/x", "a" * 64, "A.com/x", "x/", "")],
    ),
    Case(
        "every value must be the value of a label",
        [{"podLabels": {"a": "b.c_d-e"}}],
        [{"podLabels": {"a": "b c"}}, {"podLabels": {"a": "-b"}}],
    ),
    Case(
        "labels of kubernetes.io, k8s.io and finetune.dev are set by the cluster, not by a run",
        [{"podLabels": {"notkubernetes.io/x": "a", "finetune.devs/x": "a"}}],
        [
            {"podLabels": {key: "a"}}
            for key in ("finetune.dev/run", "app.kubernetes.io/name", "kueue.x-k8s.io/queue-name", "a.k8s.io/b")
        ],
    ),
    Case(
        NAME_MESSAGE,
        [{"experiment": "support-2.1"}, {"adapter": {"name": "support"}}],
        [
            {"experiment": ".."},
            {"experiment": "Support"},
            {"experiment": "a/b"},
            {"adapter": {"name": "-support"}},
            {"dataset.registry.name": "Docs"},
            {"parentAdapter": {"name": "Support"}},
            {"resumeFrom": {"run": "a/b"}},
            {"scheduling": {"queueName": "Gold"}},
            {"scheduling": {"workloadPriorityClassName": "very high"}},
        ],
    ),
    Case(
        OBJECT_NAME_MESSAGE,
        [{"output.claimName": "adapters"}, {"scheduling.priorityClassName": "high"}],
        [
            {"output.claimName": "a/b"},
            {"baseModel.volume.claimName": "Models"},
            {"scheduling.runtimeClassName": "../x"},
            {"output.claim": {"storageClassName": "_"}},
            {"baseModel": {"hub": {**HUB, "tokenSecretRef": {"name": "Hub", "key": "token"}}}},
            {**CONFIG_MAP, "dataset.configMap.name": "x_y"},
            {**SQL, "dataset.sql.urlSecretRef.name": "DB"},
            store(credentialsSecretRef={"name": "a/b"}),
            {"serviceAccountName": "A"},
        ],
    ),
    Case(
        KEY_MESSAGE,
        [
            CONFIG_MAP,
            {"baseModel": {"hub": {**HUB, "tokenSecretRef": {"name": "hub", "key": ".token_1"}}}},
            {"baseModel.chatTemplate": TEMPLATE},
        ],
        [
            {**CONFIG_MAP, "dataset.configMap.key": "a/b"},
            {**CONFIG_MAP, "dataset.configMap.key": "../rows"},
            {**SQL, "dataset.sql.urlSecretRef.key": "a/b"},
            {"baseModel": {"hub": {**HUB, "tokenSecretRef": {"name": "hub", "key": "."}}}},
        ],
    ),
    Case(
        PATH_MESSAGE,
        [{"baseModel.volume.path": "models/smollm2-135m/v1.0"}],
        [
            {"baseModel.volume.path": value}
            for value in ("/models", "models/", "../models", "a/../b", "a//b", ".", ".hidden", "a b", "-x", "a\nb")
        ],
    ),
    Case(
        "must be a repository of the hub, such as HuggingFaceTB/SmolLM2-135M-Instruct",
        [{"baseModel": {"hub": HUB}}, {"baseModel": {"hub": {"repository": "gpt2"}}}],
        [
            {"baseModel": {"hub": {"repository": value}}}
            for value in ("https://hub/a", "a/b/c", "--x", "../secrets", "a b", "/models/base")
        ]
        + [source("hub", repository="../secrets")],
    ),
    Case(
        "must be a branch, a tag or a commit",
        [{"baseModel": {"hub": {**HUB, "revision": "refs/pr/1"}}}],
        [{"baseModel": {"hub": {**HUB, "revision": "-x"}}}, {"baseModel": {"hub": {**HUB, "revision": "a b"}}}],
    ),
]
