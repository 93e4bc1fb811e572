"""JSON Schemas of the Kubernetes objects that are shipped, as strict as the API server: no field it does not know.

Written from the API's reference (v1, apps/v1, policy/v1, autoscaling/v2, networking.k8s.io/v1), for the fields in use
and their neighbours.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string", "minLength": 1}
WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
FLAG: Final[Schema] = {"type": "boolean"}
NAME: Final[Schema] = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Final[Schema] = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
QUANTITIES: Final[Schema] = {"type": "object", "additionalProperties": QUANTITY}
PORT: Final[Schema] = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, NAME]}


def obj(required: str = "", **fields: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(item: Schema) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


METADATA: Final = obj("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
SELECTOR: Final = obj(matchLabels=TEXTS)
PROBE: Final = obj(
    "httpGet",
    httpGet=obj("path port", path={"type": "string", "pattern": "^/"}, port=PORT, scheme=TEXT),
    initialDelaySeconds=WHOLE,
    periodSeconds=WHOLE,
    timeoutSeconds=WHOLE,
    failureThreshold=WHOLE,
    successThreshold=WHOLE,
)
REFERENCE: Final = obj("name", name=NAME, optional=FLAG)
CONTAINER: Final = obj(
    "name image",
    name=NAME,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=many(TEXT),
    args=many(TEXT),
    envFrom=many(obj(secretRef=REFERENCE, configMapRef=REFERENCE)),
    env=many(obj("name", name=TEXT, value={"type": "string"}, valueFrom={"type": "object"})),
    ports=many(obj("containerPort", name=NAME, containerPort=PORT, protocol={"enum": ["TCP", "UDP"]})),
    startupProbe=PROBE,
    livenessProbe=PROBE,
    readinessProbe=PROBE,
    lifecycle={"type": "object"},
    resources=obj(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=obj(
        allowPrivilegeEscalation=FLAG,
        readOnlyRootFilesystem=FLAG,
        runAsNonRoot=FLAG,
        runAsUser=WHOLE,
        privileged=FLAG,
        capabilities=obj(drop=many(TEXT), add=many(TEXT)),
    ),
    volumeMounts=many(obj("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
POD: Final = obj(
    "containers",
    automountServiceAccountToken=FLAG,
    serviceAccountName=NAME,
    terminationGracePeriodSeconds=WHOLE,
    topologySpreadConstraints=many(
        obj(
            "maxSkew topologyKey whenUnsatisfiable",
            maxSkew=WHOLE,
            topologyKey=TEXT,
            whenUnsatisfiable={"enum": ["ScheduleAnyway", "DoNotSchedule"]},
            labelSelector=SELECTOR,
        )
    ),
    securityContext=obj(
        runAsNonRoot=FLAG,
        runAsUser=WHOLE,
        runAsGroup=WHOLE,
        fsGroup=WHOLE,
        seccompProfile=obj("type", type={"enum": ["RuntimeDefault", "Localhost", "Unconfined"]}),
    ),
    containers=many(CONTAINER),
    volumes=many(obj("name", name=NAME, emptyDir={"type": "object"}, secret={"type": "object"})),
)
_SPECS: Final[dict[str, tuple[str, Schema]]] = {
    "StatefulSet": (
        "apps/v1",
        obj(
            "selector template serviceName",
            serviceName=NAME,
            replicas=WHOLE,
            updateStrategy=obj(type={"enum": ["RollingUpdate", "OnDelete"]}, rollingUpdate={"type": "object"}),
            podManagementPolicy={"enum": ["OrderedReady", "Parallel"]},
            selector=SELECTOR,
            template=obj("metadata spec", metadata=obj(labels=TEXTS, annotations=TEXTS), spec=POD),
            volumeClaimTemplates=many(
                obj(
                    "metadata spec",
                    metadata=METADATA,
                    spec=obj(
                        "accessModes resources",
                        accessModes=many({"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]}),
                        storageClassName=TEXT,
                        resources=obj("requests", requests=QUANTITIES),
                    ),
                )
            ),
        ),
    ),
    "Service": (
        "v1",
        obj(
            "selector ports",
            clusterIP=TEXT,
            selector=TEXTS,
            ports=many(obj("port", name=NAME, port=PORT, targetPort=PORT, protocol=TEXT)),
        ),
    ),
    "PodDisruptionBudget": ("policy/v1", obj("selector", maxUnavailable=WHOLE, minAvailable=WHOLE, selector=SELECTOR)),
    "HorizontalPodAutoscaler": (
        "autoscaling/v2",
        obj(
            "scaleTargetRef maxReplicas",
            scaleTargetRef=obj("apiVersion kind name", apiVersion=TEXT, kind=TEXT, name=NAME),
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            metrics=many(
                obj(
                    "type",
                    type={"enum": ["Pods", "Resource", "Object", "External"]},
                    pods=obj(
                        "metric target",
                        metric=obj("name", name=TEXT, selector=SELECTOR),
                        target=obj("type averageValue", type={"const": "AverageValue"}, averageValue=QUANTITY),
                    ),
                )
            ),
            behavior=obj(
                scaleDown=obj(stabilizationWindowSeconds=WHOLE, policies={"type": "array"}),
                scaleUp=obj(stabilizationWindowSeconds=WHOLE, policies={"type": "array"}),
            ),
        ),
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        obj(
            "podSelector",
            podSelector=SELECTOR,
            policyTypes=many({"enum": ["Ingress", "Egress"]}),
            ingress=many(
                obj(
                    **{
                        "from": many(obj(namespaceSelector=SELECTOR, podSelector=SELECTOR)),
                        "ports": many(obj(protocol={"enum": ["TCP", "UDP"]}, port=PORT)),
                    }
                )
            ),
        ),
    ),
}
SCHEMAS: Final[dict[str, Schema]] = {
    "ConfigMap": obj("apiVersion kind metadata", apiVersion={"const": "v1"}, kind=TEXT, metadata=METADATA, data=TEXTS),
    **{
        kind: obj("apiVersion kind metadata spec", apiVersion={"const": api}, kind=TEXT, metadata=METADATA, spec=spec)
        for kind, (api, spec) in _SPECS.items()
    },
}
"""By kind."""
