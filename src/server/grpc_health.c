/* server/grpc_health.c: grpc.health.v1.Health. Every service of the server is what the server is: it serves until
 * it drains. Net thread. */
#include <stdlib.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "server/grpc.h"

#define SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define NO_SERVICE  GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

static int has_service(const char *name)
{
#define SERVICE_NAME(service, method, handler, access, on_body) service,
    static const char *const services[] = {"", GRPC_METHOD_MAP(SERVICE_NAME)};
#undef SERVICE_NAME
    for (size_t i = 0; i < sizeof services / sizeof *services; i++)
        if (strcmp(services[i], name) == 0)
            return 1;
    return 0;
}

static void send_status(exchange *x, serving_status status)
{
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = status;
    grpc_send(x, &response.base);
}

/* How the service that is asked for is; 0: it has been answered. */
static int read_status(server *s, exchange *x, serving_status *out)
{
    api_problem problem = {0};
    json_t *request = grpc_read(x, &grpc__health__v1__health_check_request__descriptor, 0,
                                &problem);
    if (problem.status) {
        api_reply_problem(x, &problem);
        return 0;
    }
    const char *name = json_string_value(json_object_get(request, "service"));
    *out = net_is_draining(s->net) ? NOT_SERVING : SERVING;
    if (!has_service(name ? name : ""))
        *out = NO_SERVICE;
    json_decref(request);
    return 1;
}

void grpc_health_check(server *s, exchange *x, const caller *c)
{
    (void)c;
    serving_status status;
    if (!read_status(s, x, &status))
        return;
    if (status == NO_SERVICE) {
        grpc_fail(x, 404, "not_found", "service", "there is no service of that name");
        return;
    }
    send_status(x, status);
    grpc_end(x);
}

static void on_drain(grpc_call *call)
{
    if (call->value != NO_SERVICE)
        send_status(call->x, NOT_SERVING);
}

void grpc_health_watch(server *s, exchange *x, const caller *c)
{
    (void)c;
    serving_status status;
    if (!read_status(s, x, &status))
        return;
    grpc_call *call = grpc_call_open(s, x);
    if (!call)
        return;
    call->value = status;
    call->on_drain = on_drain;
    send_status(x, status);
}
