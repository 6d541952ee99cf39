/* SPDX-License-Identifier: MIT
 *
 * cli/server/schema.h: from a JSON Schema to the grammar of the texts that fit it. What is understood: type (also a list), properties,
 * required, additionalProperties, items, minItems, maxItems, enum, const, anyOf, allOf of one, $ref within the document, $defs, definitions;
 * annotations (title, description, default, examples, ...) are skipped, everything else is refused by name. Of an object the
 * properties that are named come in their order, and no others.
 */
#ifndef CLI_SERVER_SCHEMA_H
#define CLI_SERVER_SCHEMA_H

#include <jansson.h>

#include "grammar.h"

#define CLI_SCHEMA_MAX_PROPERTIES 100u
#define CLI_SCHEMA_MAX_ITEMS 1000u

/* schema NULL: any JSON object. DL_EINVAL with `why` filled in, DL_ENOMEM. *out is to be finished in any case. */
int cli_schema_grammar(const json_t *schema, struct cli_grammar *out, char *why, size_t n_why);

#endif
