"""`edgekit keys`: the key that releases are signed with."""

from __future__ import annotations

import typer

from edgekit.cli.common import verb
from edgekit.cli.screen import Screen


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Make and show the key that releases are signed with. A device pins the first key it sees.",
    )
    app.add_typer(group, name="keys")

    @verb(group, "make", example="edgekit keys make\nEDGEKIT_SIGNING_KEY=ci.pem edgekit keys make")
    def make(screen: Screen) -> None:
        """Make a signing key; EDGEKIT_SIGNING_PASSWORD, where it is set, encrypts it."""
        from edgekit.core import signing

        made = signing.make()
        document = {"schema_version": 1, "public_key": made.public, "path": str(made.path)}
        screen.answer(
            document,
            f"public key: {made.public}",
            f"private key: {made.path}\nKeep a copy: a device that has pinned this key takes no release without it.",
        )

    @verb(group, "show", example="edgekit keys show\nedgekit keys show --json")
    def show(screen: Screen) -> None:
        """Show the public key that releases are signed with."""
        from edgekit.core import signing
        from edgekit.core.errors import ConfigError

        found = signing.signer()
        if found is None:
            raise ConfigError(
                f"There is no signing key at '{signing.key_path()}': releases are not signed.", "edgekit keys make"
            )
        document = {"schema_version": 1, "public_key": found.public, "path": str(found.path)}
        screen.answer(document, f"public key: {found.public}", f"private key: {found.path}")
