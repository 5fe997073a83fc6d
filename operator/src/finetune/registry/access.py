"""Who may call what. The HTTP service asks before it does anything.

- the operator: a token of audience `finetune.dev/registry` whose user is the configured one
- a run's pod: a token of audience `finetune.dev/runs/<uid>`, while the pod that it is bound to exists in that
  namespace, has not ended, and belongs to a Job of that run
- people: a token of audience `finetune.dev/registry`, and the cluster's RBAC on `datasets`, `adapters`, `trainingruns`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetune.api.conditions import Condition

from .errors import Forbidden, Unauthorized
from .reviews import POD_NAME, POD_UID, KubernetesReviews, Question, User

REGISTRY_AUDIENCE = "finetune.dev/registry"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Who may make one call: any of the operator, a pod of the run `run_uid`, and people who may do `people`."""

    namespace: str
    operator: bool = False
    run_uid: str | None = None
    people: Question | None = None

    @property
    def audiences(self) -> tuple[str, ...]:
        """The audiences of the tokens that can be good for this call."""
        names = []
        if self.run_uid is not None:
            names.append(f"finetune.dev/runs/{self.run_uid}")
        if self.operator or self.people is not None:
            names.append(REGISTRY_AUDIENCE)
        return tuple(names)


class Access(Protocol):
    """The way in."""

    is_open: bool
    """Whether everybody may do everything."""

    async def namespace_uid(self, namespace: str) -> str | None:
        """The uid of a namespace; None where there is no such namespace, or no cluster. Raises `Unavailable`."""
        ...

    async def check(self, token: str | None, rule: Rule) -> str:
        """The caller's name, for the audit trail. Raises `Unauthorized`, `Forbidden` or `Unavailable`."""
        ...

    async def person(self, token: str) -> User:
        """Whose token it is, if it is one for people. Raises `Unauthorized` or `Unavailable`."""
        ...

    async def allows(self, user: User, question: Question) -> bool:
        """Whether the cluster's rules let a user do something. Raises `Unavailable`."""
        ...

    async def conditions(self, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:
        """What the cluster says of a run; nothing where it is gone, or there is no cluster. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class OpenAccess:
    """Everybody may do everything: for a registry that only its own machine can reach."""

    is_open = True

    async def namespace_uid(self, namespace: str) -> str | None:  # noqa: ARG002 - there is no cluster to ask
        """Not known."""
        return None

    async def check(self, token: str | None, rule: Rule) -> str:  # noqa: ARG002 - nothing is asked for
        """Let everybody pass."""
        return "local"

    async def person(self, token: str) -> User:  # noqa: ARG002 - nobody has a name here
        """Nobody has a name here."""
        raise Unauthorized("this registry takes no tokens", hint="it was started with --auth=none: send none")

    async def allows(self, user: User, question: Question) -> bool:  # noqa: ARG002 - nothing is asked for
        """Let everybody do it."""
        return True

    async def conditions(self, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:  # noqa: ARG002
        """There is no cluster to ask."""
        return ()

    async def close(self) -> None:
        """Nothing to close."""


class KubernetesAccess:
    """The rules of a cluster, asked from its API server."""

    is_open = False

    def __init__(self, reviews: KubernetesReviews, *, operator_user: str) -> None:
        self._reviews = reviews
        self._operator_user = operator_user

    async def close(self) -> None:
        """Close the connections to the API server."""
        await self._reviews.close()

    async def namespace_uid(self, namespace: str) -> str | None:
        """The uid of a namespace; None where there is none. Raises `Unavailable`."""
        return await self._reviews.namespace_uid(namespace)

    async def check(self, token: str | None, rule: Rule) -> str:
        """The caller's name. Raises `Unauthorized`, `Forbidden` or `Unavailable`."""
        if not token:
            raise Unauthorized(
                "the request has no token",
                hint=f'send "Authorization: Bearer <token>" with a token of audience {" or ".join(rule.audiences)}',
            )
        user = await self._reviews.user_of(token, rule.audiences)
        if REGISTRY_AUDIENCE not in user.audiences:
            await self._check_pod(user, rule)
        elif not (rule.operator and user.name == self._operator_user):
            await self._check_person(user, rule)
        return user.name

    async def person(self, token: str) -> User:
        """Whose token it is, if it is one for people. Raises `Unauthorized` or `Unavailable`."""
        return await self._reviews.user_of(token, (REGISTRY_AUDIENCE,))

    async def allows(self, user: User, question: Question) -> bool:
        """Whether the cluster's rules let a user do something. Raises `Unavailable`."""
        return await self._reviews.may(user, question)

    async def conditions(self, namespace: str, name: str, uid: str) -> tuple[Condition, ...]:
        """The conditions of the TrainingRun. Raises `Unavailable`."""
        return await self._reviews.conditions(namespace=namespace, name=name, uid=uid)

    async def _check_pod(self, user: User, rule: Rule) -> None:
        name, uid = user.single(POD_NAME), user.single(POD_UID)
        if name is None or uid is None or rule.run_uid is None:
            raise Forbidden(
                "the token is not bound to a pod",
                hint="use the token that is projected into the run's pod, not one made by hand",
            )
        if not user.name.startswith(f"system:serviceaccount:{rule.namespace}:"):
            raise Forbidden(
                f"pod {name!r} is not in namespace {rule.namespace!r}", hint="call with the pod's own namespace"
            )
        if not await self._reviews.pod_is_of_run(namespace=rule.namespace, name=name, uid=uid, run_uid=rule.run_uid):
            raise Forbidden(
                f"pod {name!r} has ended, does not exist any more, or is not of a Job of run {rule.run_uid}",
                hint="only a pod of the Job that the operator made for the run may call",
            )

    async def _check_person(self, user: User, rule: Rule) -> None:
        question = rule.people
        if question is None:
            raise Forbidden(
                f"{user.name!r} may not make this call: it is the operator's",
                hint=f"the registry's operator is {self._operator_user!r} (--operator-user)",
            )
        if not await self._reviews.may(user, question):
            what = f"{question.resource}.finetune.dev in namespace {question.namespace!r}"
            raise Forbidden(
                f"{user.name!r} may not {question.verb} {what}",
                hint=f"ask for a Role with verb {question.verb!r} on {question.resource!r} of API group finetune.dev",
            )
