/* SPDX-License-Identifier: MIT
 *
 * cli/server/page.h: the files of the web page, cli/server/page/, as they are in the program: embed.cmake makes the table.
 */
#ifndef CLI_SERVER_PAGE_H
#define CLI_SERVER_PAGE_H

#include <stddef.h>

struct cli_page_file {
    const char *path; /* what it is asked for by */
    const char *type;
    const char *etag;           /* with its quotes; another file, another tag */
    const unsigned char *bytes; /* (n) */
    size_t n;
};

extern const struct cli_page_file cli_page_files[];
extern const size_t cli_page_n_files;

#endif
