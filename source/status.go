package source

import (
	"time"

	"github.com/lateen-mesh/lateen/api"
)

// Status is how a store of configuration stands.
type Status struct {
	// Faults are why the configuration, or a part of it, is not in force as it is written; empty if it is.
	Faults []api.Fault
	// Findings are those of the set in force.
	Findings []Finding
	// Objects is the number of objects in force.
	Objects int
	// Since is when the set in force was read.
	Since time.Time
	// Restored tells that the set in force is the last good copy of an earlier run.
	Restored bool
}
