package http2
import ("testing";"net/http";"os/exec")
func TestHand(t *testing.T){
 b := newBackend(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request){ w.Write(make([]byte,1024)) }))
 r := newRelay(t, b, Config{})
 for _, a := range []string{b, r.addr} { bad := 0; for range 100 { 
 out, err := exec.Command("curl","-sv","--http2-prior-knowledge","-T","/tmp/big.bin","http://"+a+"/x", "-o","/dev/null").CombinedOutput(); if err != nil {bad++}; _=out
 }; t.Log(bad, "of 100") }
}
