// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Hypervisor options: the words of the command line that GRUB hands over, `name=value` or `name`.

#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/string.h>

enum { CMDLINE_MAX = 2048, OPTION_MAX = 64 };

static char cmdline_copy[CMDLINE_MAX];
static struct {
    const char *name, *value;
    bool known;     // somebody asked for it
    bool is_switch; // by option_off
} options[OPTION_MAX];
static u32 option_count;
static u32 option_lost; // given, but no room

static void add_option(char *word)
{
    char *value = strchr(word, '=');

    if (word[0] == '/' || word[0] == '(') // some boot loaders put the image's path first
        return;
    if (option_count == OPTION_MAX) {
        option_lost++;
        return;
    }
    if (value)
        *value++ = 0;
    options[option_count].name = word;
    options[option_count].value = value ? value : "";
    options[option_count].is_switch = false;
    options[option_count++].known = false;
}

void options_init(const char *cmdline)
{
    size_t len = strnlen(cmdline, CMDLINE_MAX - 1);
    char *p = cmdline_copy, *word;

    option_count = option_lost = 0;
    option_lost += cmdline[len] != 0;
    memcpy(cmdline_copy, cmdline, len);
    cmdline_copy[len] = 0;
    for (;;) {
        while (*p == ' ')
            p++;
        if (!*p)
            return;
        word = p;
        while (*p && *p != ' ')
            p++;
        if (*p)
            *p++ = 0;
        add_option(word);
    }
}

// The last one given wins.
const char *option_get(const char *name)
{
    const char *value = NULL;

    for (u32 i = 0; i < option_count; i++) {
        if (strcmp(options[i].name, name) == 0) {
            options[i].known = true;
            value = options[i].value;
        }
    }
    return value;
}

bool option_is(const char *name, const char *value)
{
    const char *given = option_get(name);

    return given && strcmp(given, value) == 0;
}

bool option_off(const char *name)
{
    for (u32 i = 0; i < option_count; i++)
        if (strcmp(options[i].name, name) == 0)
            options[i].is_switch = true;
    return option_is(name, "off");
}

void options_check(void)
{
    for (u32 i = 0; i < option_count; i++) {
        const char *value = options[i].value;

        if (!options[i].known)
            log_warn("unknown option `%s` on the command line: ignored", options[i].name);
        else if (options[i].is_switch && strcmp(value, "off") != 0 && strcmp(value, "auto") != 0)
            log_warn("option %s=%s: expected auto or off", options[i].name, value);
    }
    if (option_lost)
        log_warn("the command line is too long: its end is ignored");
}
