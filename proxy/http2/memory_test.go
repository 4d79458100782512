package http2

import "testing"

// TestTrim: of what is kept half of that goes which nobody has needed.
func TestTrim(t *testing.T) {
	var m Memory
	burst := func(n int) {
		var q queue
		q.push(&m, make([]byte, n*chunkSize))
		q.drop(&m)
		m.enter()
		for _, x := range takeExchanges(&m, n) {
			m.giveExchange(x)
		}
		m.leave()
	}
	trim := func(want int) {
		t.Helper()
		m.Trim()
		n := 0
		for k := m.spare; k != nil; k = k.next {
			n++
		}
		if n != want || m.spares != want || len(m.exchanges) != want {
			t.Fatalf("%d chunks are kept, %d are counted; %d exchanges; want %d", n, m.spares, len(m.exchanges), want)
		}
	}
	trim(0)
	burst(9)
	trim(9) // all were needed
	burst(3)
	trim(6) // 6 were not
	for _, want := range []int{3, 1, 0, 0} {
		trim(want)
	}
	burst(2)
	trim(2)
}

func takeExchanges(m *Memory, n int) (list []*exchange) {
	for range n {
		list = append(list, m.takeExchange())
	}
	return list
}
