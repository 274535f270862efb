"""Every setting of Tidegate: typed, frozen, in groups, read once at start.

`groups` say what each variable may hold, `loading` reads and judges them, `rules` are what production refuses. Nothing
is read at import.
"""

from tidegate.settings.loading import (
    PREFIX,
    Settings,
    SettingsError,
    given_environment,
    load_settings,
    setting_advice,
    unknown_variables,
    variable_names,
    wants_colours,
)

__all__ = [
    "PREFIX",
    "Settings",
    "SettingsError",
    "given_environment",
    "load_settings",
    "setting_advice",
    "unknown_variables",
    "variable_names",
    "wants_colours",
]
