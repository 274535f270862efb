"""The page after a log-in at the provider, which leads on by itself, and the one for who was not let in.

A browser keeps cookies that are `SameSite=Strict` from an answer that another site led to, and does not send them
along a redirect from there: that is the other site's navigation still. So the answer is a page of this gateway, and
what leads on from it is the gateway's own. It runs no script and loads nothing, under the policy of every answer.
"""

from html import escape


def landing_page(path: str) -> str:
    """Leads on to a local path."""
    target = escape(path)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Signed in</title>\n'
        f'<meta http-equiv="refresh" content="0; url={target}">\n</head>\n'
        f'<body>\n<p>You are signed in: <a href="{target}">go on</a>.</p>\n</body>\n</html>\n'
    )


def refusal_page(message: str, request_id: str) -> str:
    """Says why somebody was not let in, and leads back to where they may try again."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Not signed in</title>\n</head>\n'
        f"<body>\n<h1>You are not signed in</h1>\n<p>{escape(message)}</p>\n"
        '<p><a href="/sign-in">Back to signing in</a></p>\n'
        f"<p><small>Where you ask somebody for help, tell them this: {escape(request_id)}</small></p>\n"
        "</body>\n</html>\n"
    )
