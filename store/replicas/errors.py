"""What can go wrong with a replica's bucket or directory."""

from __future__ import annotations

from store.errors import DamagedError, StoreError


class ReplicaError(StoreError):
    """The replica cannot be used as asked; the text names it and the object."""

    hint = (
        "Mend what is named. Capture goes on meanwhile on hosts that ship, and what a replica lacks is "
        "shipped then."
    )
    exit_code = 50


class UnreachableError(ReplicaError):
    """It does not answer, or says that it cannot now: worth another try."""

    hint = (
        "Look at the network, the endpoint (AWS_ENDPOINT_URL where no [[replica]] has one), and whether "
        "the bucket is there. Capture goes on meanwhile on hosts that ship; what is missing is shipped then."
    )


class AwayError(ReplicaError):
    """The directory is not there."""

    hint = (
        "Mount what is to be there, or mend the URL. It goes on by itself then; to begin anew in a directory "
        "that is empty, restart `serve`."
    )


class RefusedError(ReplicaError):
    """It does not let us."""

    hint = (
        "Look at the credentials and their rights, the endpoint (AWS_ENDPOINT_URL where no [[replica]] has "
        "one), the bucket's name and region, and this host's clock."
    )


class ClockError(RefusedError):
    """It does not let us, for the time of our requests is not its own."""

    hint = (
        "This host's clock and the bucket's are too far apart: set this one (`timedatectl`, "
        "`chronyc tracking`). Capture goes on; what is missing is shipped by itself once the clock is right."
    )


class FullError(ReplicaError):
    """It has no room for more, or a quota is used up."""

    hint = "Make room there, or raise its quota. Capture goes on; what is missing is shipped by itself then."


class MissingObjectError(ReplicaError, DamagedError):
    """An object is not there: whatever lies in it is as good as damaged, and the rest can be read."""

    hint = "`mailkeep check --replica URL` tells what else is missing."


class DiffersError(ReplicaError):
    """An object of that name is there, with other bytes."""

    hint = "Somebody else has written it, or it is damaged: `mailkeep check --replica URL` tells."


class DamagedUploadError(ReplicaError):
    """An object came to be something else than was sent."""

    hint = "Something between here and the replica alters data; `mailkeep check --replica URL` tells what."


class UnfitError(ReplicaError):
    """The bucket does not keep what a replica relies on."""

    hint = "Use a store that honours If-None-Match on PUT and returns what was written."
