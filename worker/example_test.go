package worker_test

import (
	"fmt"
	"io"
	"net/http"

	"rrd/worker"
)

// The program of the documentation, which also runs without rrd.
func ExampleListen() {
	ln, err := worker.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "hello")
	})}
	servedC := make(chan error, 1)
	go func() { servedC <- srv.Serve(ln) }() // waited for below

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	fmt.Println(string(body))
	_ = srv.Close()
	fmt.Println(<-servedC)
	// Output:
	// hello
	// http: Server closed
}
