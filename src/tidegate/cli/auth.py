"""`tidegate auth`: the deployment's secrets. Only what is to be set goes to standard output."""

import click

from tidegate.auth.keyring import SECRETS_FILE, Keyring, Keyrings
from tidegate.cli.output import print_json
from tidegate.settings import load_settings


@click.group("auth")
def auth_command() -> None:
    """Rotate the secrets of tokens and keys."""


@auth_command.command("rotate-key")
@click.option("--peppers", is_flag=True, help="Of TIDEGATE_AUTH__API_KEY_PEPPERS, which hash API keys.")
@click.option("--encryption", is_flag=True, help="Of TIDEGATE_AUTH__ENCRYPTION_KEYS, which encrypt what is stored.")
@click.option("--keep", type=click.IntRange(min=0), help="How many old ones stay, the latest first. [all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rotate_key(peppers: bool, encryption: bool, keep: int | None, as_json: bool) -> None:
    r"""Print the next TIDEGATE_AUTH__JWT_KEYS: a new key first, and the old ones after it.

    Nothing is changed by this. Set the variable to what is printed, and have the workers start anew:

    \b
        export TIDEGATE_AUTH__JWT_KEYS="$(tidegate auth rotate-key)"

    The new key signs from then on, and the old ones still verify, so a rotation logs nobody out. An old key of access
    tokens may be dropped (--keep) once the last token that it signed has expired: TIDEGATE_AUTH__ACCESS_TOKEN_MINUTES
    after the last worker began to sign by the new one. Refresh tokens do not depend on these keys.

    An old pepper may be dropped once no API key needs it any more, which `tidegate keys list` tells: a key is hashed
    anew under the first pepper when it is used, and one whose pepper is dropped is void.

    An old key of encryption may be dropped once everybody with a second factor has signed in by it since: each is
    encrypted anew then. One whose key is dropped opens nothing but by a recovery code, until it is reset.
    """
    if peppers and encryption:
        raise click.UsageError("--peppers and --encryption: one variable at a time.")
    settings = load_settings()
    keyrings = Keyrings.load(settings)
    before: Keyring | None = keyrings.jwt
    name, does = "JWT_KEYS", "signs. Still verifying"
    if peppers:
        name, before, does = "API_KEY_PEPPERS", keyrings.peppers, "hashes new API keys. Still verifying"
    elif encryption:
        name, before, does = "ENCRYPTION_KEYS", keyrings.encryption, "encrypts. Still decrypting"
    variable = f"TIDEGATE_AUTH__{name}"
    ring = Keyring.rotated_after(before, keep=keep)
    kids = [kid for kid, _ in ring.items()]
    click.echo(f"{variable}: {kids[0]} is new and {does}: {', '.join(kids[1:]) or 'no other'}.", err=True)
    path = settings.data_dir / SECRETS_FILE
    if not settings.in_production and path.exists():
        click.echo(f"Outside production what {path} holds goes on verifying beside it.", err=True)
    if as_json:
        print_json({"variable": variable, "value": ring.as_setting(), "kids": kids})
    else:
        click.echo(ring.as_setting())
