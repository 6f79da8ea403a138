package health

import (
	"strconv"
	"strings"

	"github.com/identify-worker/identify-worker/queue/fleet"
)

func nameOf(r fleet.Replica) string { return ReplicaName(r.Host, r.ID) }

// ReplicaName is the host, with the last characters of the id: the ids of replicas on one host
// differ there.
func ReplicaName(host, id string) string {
	if host == "" {
		return id
	}
	return host + "/" + id[max(0, len(id)-4):]
}

// PartitionList shortens sorted names: "0-3 7 plain".
func PartitionList(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	var parts []string
	for i := 0; i < len(names); {
		first, err := strconv.Atoi(names[i])
		next := i + 1
		for err == nil && next < len(names) && names[next] == strconv.Itoa(first+next-i) {
			next++
		}
		switch next - i {
		case 1:
			parts = append(parts, names[i])
		case 2:
			parts = append(parts, names[i], names[i+1])
		default:
			parts = append(parts, names[i]+"-"+names[next-1])
		}
		i = next
	}
	return strings.Join(parts, " ")
}
