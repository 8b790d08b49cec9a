/* tenancy/trial.h: a program is tried with one request before it is deployed: the smoke test.
 *
 * It runs as its tenant would run it, with the tenant's grants, limits and other programs, but with an empty state
 * that goes with the trial, so that nothing of the tenant's is read or changed. What it is asked and what counts as
 * failing is decided here for both who deploy: the admin API starts the run itself, because its thread must not
 * wait; a command on a data folder calls trial_run. */
#ifndef REALM_TENANCY_TRIAL_H
#define REALM_TENANCY_TRIAL_H

#include "tenancy/tenancy.h"

typedef struct trial {
    const char *body; /* what the program is asked; borrowed or static */
    int is_own_body; /* ours: it may dislike it. Else it came with the program, which must not fail */
    sandbox_tenant *tenant;
    uint64_t cpu_ns; /* that it may take */
} trial;

/* 0 for the body "none": the program is not to be tried. */
int trial_is_wanted(const char *smoke);

/* Grants for one run of the program that will have that name. Borrows info's reference (retains its own) and
 * smoke (NULL: a body that suits the name, or {}) until trial_release; models [n_models] are copied, their engines
 * borrowed. Any thread. */
realm_status trial_open(trial *out, tenant_info *info, const char *name, const char *smoke,
                        const sandbox_model *models, int32_t n_models, realm_error *error);
void trial_release(trial *t); /* once more, or of a zeroed one: nothing */

/* What came of it.
 *   REALM_INVALID  "the smoke test failed, nothing was deployed: ..." */
realm_status trial_judge(const trial *t, realm_status status, const char *message,
                         const sandbox_usage *usage, realm_error *error);

/* All of it for a tenant of a store that no server need run on; p is the program, compiled by host. Waits for the
 * run, at most ten seconds. The thread that owns the store.
 *   REALM_NOT_FOUND  there is no such tenant; else as trial_judge and sandbox_start */
realm_status trial_run(tenant_store *s, sandbox_host *host, const sandbox_model *models,
                       int32_t n_models, const char *tenant, const char *name, program *p,
                       const char *smoke, realm_error *error);

#endif
