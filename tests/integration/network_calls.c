/* Preloaded into every process of a service: notes whom it connects to, whom it sends to, and which names it looks up.
 *
 * One line a call goes to the file that SEEN_CALLS names: "<pid> <call> <tcp|udp|…> <address or name> <port>". Local
 * sockets are left out. Every program of a service, Ray's own included, reaches the network through these functions
 * of the C library.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *kind, const char *whom, int port) {
    const char *path = getenv("SEEN_CALLS");
    char line[512];
    int length = snprintf(line, sizeof line, "%d %s %s %s %d\n", getpid(), call, kind, whom, port);
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file < 0 || length >= (int)sizeof line || write(file, line, length) != length) {
        abort(); /* a call that is not noted must not go unseen */
    }
    close(file);
}

static const char *kind_of(int fd) {
    int kind = 0;
    socklen_t size = sizeof kind;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size);
    return kind == SOCK_STREAM ? "tcp" : kind == SOCK_DGRAM ? "udp" : "other";
}

static void note_address(const char *call, int fd, const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (to == NULL || to->sa_family == AF_UNIX || to->sa_family == AF_NETLINK || to->sa_family == AF_UNSPEC) {
        return;
    }
    if (to->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)to;
        inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
        note(call, kind_of(fd), text, ntohs(v4->sin_port));
    } else if (to->sa_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)to;
        inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
        note(call, kind_of(fd), text, ntohs(v6->sin6_port));
    } else {
        note(call, "other", "?", 0);
    }
}

/* A datagram socket that was connected says nothing by that: the kernel only chooses a route. What it sends counts. */
static void note_peer(const char *call, int fd) {
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    if (kind_of(fd)[0] == 'u' && getpeername(fd, (struct sockaddr *)&peer, &size) == 0) {
        note_address(call, fd, (struct sockaddr *)&peer);
    }
}

#define REAL(result, name, ...)                                                \
    static result (*real)(__VA_ARGS__);                                        \
    if (real == NULL) {                                                        \
        *(void **)&real = dlsym(RTLD_NEXT, #name);                             \
    }

int connect(int fd, const struct sockaddr *to, socklen_t size) {
    REAL(int, connect, int, const struct sockaddr *, socklen_t)
    note_address("connect", fd, to);
    return real(fd, to, size);
}

ssize_t send(int fd, const void *bytes, size_t count, int flags) {
    REAL(ssize_t, send, int, const void *, size_t, int)
    note_peer("send", fd);
    return real(fd, bytes, count, flags);
}

ssize_t sendto(int fd, const void *bytes, size_t count, int flags, const struct sockaddr *to, socklen_t size) {
    REAL(ssize_t, sendto, int, const void *, size_t, int, const struct sockaddr *, socklen_t)
    to ? note_address("send", fd, to) : note_peer("send", fd);
    return real(fd, bytes, count, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    REAL(ssize_t, sendmsg, int, const struct msghdr *, int)
    message->msg_name ? note_address("send", fd, message->msg_name) : note_peer("send", fd);
    return real(fd, message, flags);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
    REAL(int, sendmmsg, int, struct mmsghdr *, unsigned int, int)
    for (unsigned int i = 0; i < count; i++) {
        messages[i].msg_hdr.msg_name ? note_address("send", fd, messages[i].msg_hdr.msg_name)
                                     : note_peer("send", fd);
    }
    return real(fd, messages, count, flags);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    REAL(int, getaddrinfo, const char *, const char *, const struct addrinfo *, struct addrinfo **)
    note("name", "-", name && *name ? name : "*", 0);
    return real(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    REAL(struct hostent *, gethostbyname, const char *)
    note("name", "-", name, 0);
    return real(name);
}

int gethostbyname_r(const char *name, struct hostent *entry, char *room, size_t size, struct hostent **found,
                    int *error) {
    REAL(int, gethostbyname_r, const char *, struct hostent *, char *, size_t, struct hostent **, int *)
    note("name", "-", name, 0);
    return real(name, entry, room, size, found, error);
}

/* The way back, from an address to a name, asks the network too. */
int gethostbyaddr_r(const void *address, socklen_t length, int family, struct hostent *entry, char *room, size_t size,
                    struct hostent **found, int *error) {
    REAL(int, gethostbyaddr_r, const void *, socklen_t, int, struct hostent *, char *, size_t, struct hostent **, int *)
    char text[INET6_ADDRSTRLEN] = "?";
    inet_ntop(family, address, text, sizeof text);
    note("reverse", "-", text, 0);
    return real(address, length, family, entry, room, size, found, error);
}

int getnameinfo(const struct sockaddr *address, socklen_t size, char *host, socklen_t host_size, char *service,
                socklen_t service_size, int flags) {
    REAL(int, getnameinfo, const struct sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int)
    if (host_size && !(flags & NI_NUMERICHOST)) {
        note_address("reverse", -1, address);
    }
    return real(address, size, host, host_size, service, service_size, flags);
}
