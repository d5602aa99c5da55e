//! The functions against what Go's `text/template` with confd's own functions gives for the same keys.

use super::{functions, *};

fn store() -> Arc<Store> {
    let member = r#"{"conn_url":"postgres://10.0.0.11:5432/postgres","api_url":"https://10.0.0.11:8008/patroni","role":"primary","n":5432,"big":1e21,"tags":{"nofailover":true},"none":null,"list":[1,2.5,"x"]}"#;
    let keys = [
        ("/app/db/pass", "geheim"),
        ("/app/db/user", "alice"),
        ("/app/port", "5432"),
        ("/app/upstream/b1", "10.0.1.11:80"),
        ("/app/upstream/a1", "10.0.1.12:80"),
        ("/app/upstream/long", "10.0.1.10:80"),
        ("/top", "x"),
        ("/m/pg-1", member),
    ];
    Arc::new(keys.iter().map(|(key, value)| (Arc::from(*key), Arc::from(*value))).collect())
}

fn render(source: &str) -> Result<String> {
    compile("t", source)?.render(&Scope::new(store(), PathBuf::new(), Vec::new()), &Value::Nil)
}

/// Templates with what Go makes of them.
#[rustfmt::skip]
const RENDERED: &[(&str, &str)] = &[
    (r#"{{exists "/top"}} {{exists "/nope"}}"#, "true false"),
    (r#"{{with get "/app/port"}}{{.Key}}={{.Value}}{{end}}"#, "/app/port=5432"),
    (r#"{{get "/app/port"}}"#, "{/app/port 5432}"),
    (r#"{{range gets "/app/upstream/*"}}{{base .Key}}={{.Value}};{{else}}none{{end}}"#, "a1=10.0.1.12:80;b1=10.0.1.11:80;long=10.0.1.10:80;"),
    (r#"{{range gets "/app/none/*"}}x{{else}}none{{end}}"#, "none"),
    (r#"{{len (gets "/app/none/*")}}"#, "0"),
    (r#"{{getv "/app/port"}}"#, "5432"),
    (r#"{{getv "/nope" "fallback"}}"#, "fallback"),
    (r#"{{range getvs "/app/upstream/*"}}{{.}} {{end}}"#, "10.0.1.10:80 10.0.1.11:80 10.0.1.12:80 "),
    (r#"{{join (getvs "/app/upstream/*") ","}}"#, "10.0.1.10:80,10.0.1.11:80,10.0.1.12:80"),
    (r#"{{ls "/app"}} {{ls "/app/upstream"}} {{ls "/app/port"}} {{ls "/"}} {{ls "/nope"}}"#, "[db port upstream] [a1 b1 long] [port] [top] []"),
    (r#"{{lsdir "/app"}} {{lsdir "/app/db"}} {{lsdir "/"}}"#, "[db upstream] [] []"),
    (r#"{{base "/a/b/c"}} {{base ""}} {{base "/"}} {{"/x/y" | base}}"#, "c . / y"),
    (r#"{{dir "/a/b/c"}} {{dir "a"}} {{dir "/a/../b/"}}"#, "/a/b . /b"),
    (r#"{{split "a,b,c" ","}} {{index (split "h:1" ":") 1}} {{len (split "" ",")}} {{len (split "abc" "")}}"#, "[a b c] 1 1 3"),
    (r#"{{$d := json (getv "/m/pg-1")}}{{$d.role}} {{$d.n}} {{$d.big}} {{$d.tags}} {{$d.tags.nofailover}} {{$d.none}} {{$d.missing}} {{$d.list}}"#, "primary 5432 1e+21 map[nofailover:true] true <no value> <no value> [1 2.5 x]"),
    (r#"{{$d := json (getv "/m/pg-1")}}{{$d.missing.deeper}}"#, "<no value>"),
    (r#"{{json "null"}}"#, "map[]"),
    (r#"{{range jsonArray "[1, \"a\", null, {\"b\": 2}]"}}<{{.}}>{{end}}"#, "<1><a><<no value>><map[b:2]>"),
    (r#"{{range $k, $v := map "b" 2 "a" "x"}}{{$k}}={{$v}} {{end}}"#, "a=x b=2 "),
    (r#"{{(map "name" "n").name}} {{index (map "p" 9200) "p"}}"#, "n 9200"),
    (r#"{{getenv "PGHA_SURELY_UNSET"}}|{{getenv "PGHA_SURELY_UNSET" "dflt"}}"#, "|dflt"),
    (r#"{{toUpper "value ß é"}} {{toLower "VALUE É"}}"#, "VALUE ß É value é"),
    (r#"{{contains "seafood" "foo"}} {{contains "seafood" "bar"}}"#, "true false"),
    (r#"{{replace "a-b-c" "-" "_" -1}} {{replace "a-b-c" "-" "_" 1}} {{replace "ab" "" "-" -1}} {{replace "abc" "b" "" 0}}"#, "a_b_c a_b-c -a-b- abc"),
    (r#"{{trimSuffix "a.conf" ".conf"}} {{trimSuffix "a.conf" ".x"}}"#, "a a.conf"),
    (r#"{{fileExists "/"}} {{fileExists "/nonexistent-file"}}"#, "true false"),
    (r#"{{base64Encode "Value"}} {{base64Decode "VmFsdWU="}}"#, "VmFsdWU= Value"),
    (r#"{{parseBool "t"}} {{parseBool "0"}} {{if parseBool "true"}}yes{{end}}"#, "true false yes"),
    (r#"{{reverse (getvs "/app/upstream/*")}}"#, "[10.0.1.12:80 10.0.1.11:80 10.0.1.10:80]"),
    (r#"{{range reverse (gets "/app/upstream/*")}}{{base .Key}} {{end}}"#, "long b1 a1 "),
    (r#"{{reverse "abc"}}"#, "abc"),
    (r#"{{sortByLength (split "ccc,a,bb,d" ",")}}"#, "[a d bb ccc]"),
    (r#"{{range sortKVByLength (gets "/app/upstream/*")}}{{base .Key}} {{end}}"#, "a1 b1 long "),
    ("{{add 1 2}} {{sub 1 2}} {{mul 3 4}} {{div 7 2}} {{mod 7 2}} {{div -7 2}} {{mod -7 2}}", "3 -1 12 3 1 -3 -1"),
    ("{{add 2.0 2}}", "4"),
    ("{{range seq 3 5}}{{.}} {{end}}|{{range seq 1 0}}{{.}}{{else}}none{{end}}", "3 4 5 |none"),
    (r#"{{range seq 1 (atoi (getv "/app/port" | printf "%.1s"))}}{{.}}{{end}}"#, "12345"),
    (r#"{{atoi "42"}} {{atoi "-7"}} {{atoi "+3"}}"#, "42 -7 3"),
    (r#"{{lookupIP "127.0.0.1"}} {{lookupIPV4 "127.0.0.1"}} {{lookupIPV6 "::1"}} {{len (lookupIPV6 "127.0.0.1")}} {{lookupIP "no.such.host.invalid"}}"#, "[127.0.0.1] [127.0.0.1] [::1] 0 []"),
    (r#"{{default "d" ""}} {{default "d" "v"}} {{"" | default "piped"}} {{default 5 0}}"#, "d v piped 5"),
    (r#"{{ternary "a" "b" true}} {{ternary "a" "b" (eq 1 2)}}"#, "a b"),
    (r#"{{coalesce "" 0 "x" "y"}} {{coalesce "" 0}}"#, "x <no value>"),
    (r#"{{empty ""}} {{empty 0}} {{empty (map)}} {{empty "x"}} {{empty nil}}"#, "true true true false true"),
    (r#"{{toJson (map "b" 1 "a" (list 1 "x<&>" true nil 2.5))}} {{toJson (json (getv "/m/pg-1"))}}"#, r#"{"a":[1,"x\u003c\u0026\u003e",true,null,2.5],"b":1} {"api_url":"https://10.0.0.11:8008/patroni","big":1e+21,"conn_url":"postgres://10.0.0.11:5432/postgres","list":[1,2.5,"x"],"n":5432,"none":null,"role":"primary","tags":{"nofailover":true}}"#),
    (r#"{{toJson (get "/top")}}"#, r#"{"Key":"/top","Value":"x"}"#),
    (r#"{{toPrettyJson (map "b" (list 1 2) "a" (map) "c" (list))}}"#, r#"{
  "a": {},
  "b": [
    1,
    2
  ],
  "c": []
}"#),
    (r#"{{(fromJson "{\"a\":[1,2]}").a}} {{fromJson "3"}} {{fromJson "\"s\""}}"#, "[1 2] 3 s"),
    (r#"{{indent 4 "a\nb"}}|{{nindent 2 "a\nb"}}|{{indent 2 ""}}|{{indent -1 "a"}}"#, r#"    a
    b|
  a
  b||a"#),
    (r#"{{quote "a\"b\\\n\tü\x01"}} {{squote "it's"}}"#, r#""a\"b\\\n\tü\x01" 'it''s'"#),
    (r#"{{regexMatch "^a.c$" "abc"}} {{regexMatch "^a.c$" "abd"}} {{regexFind "[0-9]+" "ab12cd34"}} {{regexReplaceAll "([a-z])([0-9])" "a1b2" "$2$1"}} {{regexReplaceAll "a(x*)b" "-ab-axxb-" "${1}W"}}"#, "true false 12 1a2b -W-xxW-"),
    (r#"{{trimPrefix "v" "v1"}} {{trimPrefix "v1" "v"}}"#, "v 1"),
    (r#"{{repeat 3 "ab"}} [{{repeat -1 "ab"}}]"#, "ababab []"),
    (r#"{{nospace " a b\tc\n"}}"#, "abc"),
    (r#"{{snakecase "HTTPServerName fooBar-baz"}} {{camelcase "some_snake-case HTTPServer"}} {{kebabcase "SomeCamelCase_x"}}"#, "http_server_name_foo_bar_baz someSnakeCaseHttpServer some-camel-case-x"),
    (r#"{{dict "a" 1}} {{list 1 "b" 2.5}} {{hasKey (dict "a" 1) "a"}} {{hasKey (dict "a" 1) "b"}} {{keys (dict "b" 1 "a" 2)}} {{values (dict "b" 1 "a" 2)}} {{append (list 1) 2}} {{pluck "a" (dict "a" 1) (dict "b" 2) (dict "a" 3)}}"#, "map[a:1] [1 b 2.5] true false [a b] [2 1] [1 2] [1 3]"),
    (r#"{{sha256sum "abc"}}"#, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (r#"{{if and (exists "/top") (not (exists "/nope"))}}both{{end}} {{or "" "b"}} {{and 1 0}}"#, "both b 0"),
    (r#"{{eq "a" "a"}} {{eq 1 2 1}} {{ne "a" "b"}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 2}}"#, "true true true true true false true"),
    (r#"{{index (jsonArray "[10,20]") 1}} {{index (map "a" (map "b" "deep")) "a" "b"}} {{index (map "a" 1) "zz"}}"#, "20 deep <no value>"),
    (r#"{{len "abc"}} {{len (gets "/app/upstream/*")}}"#, "3 3"),
    (r#"{{slice "abcdef" 1 3}} {{slice (split "a,b,c" ",") 1}}"#, "bc [b c]"),
    (r#"{{print "a" 1 2 "b"}} {{printf "%05d|%-5s|%q|%v|%x|%t|%.2f|%5.1f|%%" 42 "ab" "q" 1.5 255 true 3.14159 2.25}} {{println "x"}}"#, r#"a1 2b 00042|ab   |"q"|1.5|ff|true|3.14|  2.2|% x
"#),
    (r#"{{html "<a href=\"x\">&'"}} {{js "it's \"q\" <b>"}} {{urlquery "a b&c=d/é"}}"#, r#"&lt;a href=&#34;x&#34;&gt;&amp;&#39; it\'s \"q\" \u003Cb\u003E a+b%26c%3Dd%2F%C3%A9"#),
    (r#"{{define "row"}}[{{.}}]{{end}}{{template "row" "x"}}{{template "row"}}{{block "b" 5}}<{{.}}>{{end}}"#, "[x][<no value>]<5>"),
    (r#"{{range $i, $e := split "a,b" ","}}{{$i}}{{$e}}{{end}} {{with ""}}x{{else}}empty{{end}} {{range seq 1 5}}{{if eq . 2}}{{continue}}{{end}}{{if eq . 4}}{{break}}{{end}}{{.}}{{end}}"#, "0a1b empty 13"),
    (r#"{{- /* comment */ -}}  trimmed  {{- "x" -}}  !"#, "trimmedx!"),
    (r#"{{$x := 1}}{{range seq 1 3}}{{$x = add $x .}}{{end}}{{$x}} {{with $y := "v"}}{{$y}}{{end}}"#, "7 v"),
    ("{{.foo}}", "<no value>"),
    ("{{.}}", "<no value>"),
    (r#"{{printf "%d %s" 1}}"#, "1 %!s(MISSING)"),
    (r#"{{printf "/members/%s" "pg-1"}}"#, "/members/pg-1"),
    ("{{1000000}} {{1.0}} {{1e6}} {{0x1F}} {{'a'}} {{1e21}} {{1e-7}} {{0.0001}} {{123456789.0}}", "1000000 1 1e+06 31 97 1e+21 1e-07 0.0001 1.23456789e+08"),
    (r#"{{"a" | printf "%s-%s" "b"}}"#, "b-a"),
    (r#"{{printf "%s" (get "/top").Value}} {{(split "a/b" "/") | len}}"#, "x 2"),
    (r#"{{range $i, $kv := gets "/app/upstream/*"}}{{if $i}},{{end}}{{$kv.Value}}{{end}}"#, "10.0.1.12:80,10.0.1.11:80,10.0.1.10:80"),
    (r#"{{$d := json (getv "/m/pg-1")}}{{base (replace (index (split $d.conn_url "/") 2) "@" "/" -1)}} {{index (split (index (split $d.api_url "/") 2) ":") 1}}"#, "10.0.0.11:5432 8008"),
    (r#"{{$d := json (getv "/m/pg-1")}}{{if $d.tags.nofailover}}no{{end}}{{range $d.list}}<{{.}}>{{end}}"#, "no<1><2.5><x>"),
    (r#"{{with $d := json (getv "/m/pg-1")}}{{.role}}{{end}}"#, "primary"),
    (r#"{{"quoted \"x\" \u00e9"}} {{`raw \n`}}"#, r#"quoted "x" é raw \n"#),
    ("{{range 3}}{{.}}{{end}}", "012"),
    (r#"{{if not (eq "a" "b")}}1{{else if true}}2{{else}}3{{end}} {{with "" }}{{else with "z"}}{{.}}{{end}}"#, "1 z"),
    (r#"{{index "abc" 1}} {{printf "%v %v" (list 1 2) (dict "a" 1)}} {{printf "%c %U %e %g %08.3f %+d" 65 65 1234.5 1e21 3.14159 5}}"#, "98 [1 2] map[a:1] A U+0041 1.234500e+03 1e+21 0003.142 +5"),
    ("{{eq nil nil}}", "true"),
    (r#"{{print nil}} {{print 1e21}} {{printf "%v" 1e21}} {{print 0.00001}}"#, "<nil> 1e+21 1e+21 1e-05"),
    (r#"{{print 1e6}} {{printf "%v %g" 1e6 1e6}} {{print 123456.0}} {{println 1234567.0}} {{printf "%v" (list 1e6)}} {{list 1e6}} {{printf "%d" (len "ab")}} {{html 1e6}}"#, r#"1e+06 1e+06 1e+06 123456 1.234567e+06
 [1e+06] [1e+06] 2 1e+06"#),
    (r#"{{printf "%s" (split "a,b" ",")}} {{printf "%s|%v" (gets "/app/upstream/*") (list 1.5)}}"#, "[a b] [{/app/upstream/a1 10.0.1.12:80} {/app/upstream/b1 10.0.1.11:80} {/app/upstream/long 10.0.1.10:80}]|[1.5]"),
    // Where Go demands a []string, any list of texts will do.
    (r#"{{join (jsonArray "[\"a\",\"b\"]") "-"}}"#, "a-b"),
    (r#"{{lookupIfaceIPV4 "nope0"}}{{lookupIfaceIPV6 "nope0"}}"#, ""),
    (r#"{{lt 0 (len (hostname))}} {{lookupSRV "x" "tcp" "."}}"#, "true []"),
    (r#"{{lt 2000 (datetime).Year}} {{datetime.Format "2006" | len}} {{$t := datetime}}{{len ($t.Format "15:04")}} {{gt $t.Unix 1700000000}}"#, "true 4 5 true"),
];

/// Templates that Go refuses, with a part of the reason.
#[rustfmt::skip]
const REFUSED: &[(&str, &str)] = &[
    (r#"{{get "/nope"}}"#, ""),
    (r#"{{(get "/top").Val}}"#, ""),
    (r#"{{gets "/["}}"#, ""),
    (r#"{{getv "/nope"}}"#, ""),
    (r#"{{json "[1]"}}"#, ""),
    (r#"{{json "{"}}"#, ""),
    (r#"{{jsonArray "{}"}}"#, ""),
    (r#"{{map "a"}}"#, ""),
    ("{{map 1 2}}", ""),
    (r#"{{base64Decode "%%%"}}"#, ""),
    (r#"{{parseBool "yes"}}"#, ""),
    ("{{div 1 0}}", ""),
    ("{{mod 1 0}}", ""),
    (r#"{{add 1 "2"}}"#, ""),
    ("{{add 1.5 2}}", ""),
    (r#"{{atoi "4x"}}"#, ""),
    (r#"{{atoi ""}}"#, ""),
    (r#"{{ternary "a" "b" 1}}"#, ""),
    (r#"{{fromJson "nope"}}"#, ""),
    (r#"{{regexMatch "(" "x"}}"#, ""),
    (r#"{{eq (json (getv "/m/pg-1")).n 5432}}"#, ""),
    (r#"{{index (split "a" ",") 5}}"#, ""),
    ("{{nil}}", ""),
    (r#"{{split "a"}}"#, ""),
    (r#"{{split 1 ","}}"#, ""),
    ("{{toUpper nil}}", ""),
    (r#"{{getv "/nope" | printf "%s"}}"#, ""),
    (r#"{{template "nowhere"}}"#, ""),
    ("{{nosuchfunction 1}}", ""),
    ("{{if}}x{{end}}", ""),
    (r#"{{range gets "/app/upstream/*"}}"#, ""),
    ("{{len nil}}", ""),
    (r#"{{cgetv "/secret"}}"#, "`cgetv` is not supported"),
    (r#"{{cget "/secret"}}"#, "`cget` is not supported"),
    (r#"{{if false}}{{cgets "/secret/*"}}{{end}}"#, "`cgets` is not supported"),
    (r#"{{range cgetvs "/secret/*"}}{{end}}"#, "`cgetvs` is not supported"),
    (r#"{{call "x"}}"#, ""),
    (r#"{{if false}}{{nosuchfunction 1}}{{end}}"#, "\"nosuchfunction\" not defined"),
    (r#"{{_field 1}}"#, "\"_field\" not defined"),
    (r#"{{datetime.Add 1}}"#, "time method Add"),
    (r#"{{seq 1 99999999}}"#, "more than"),
    (r#"{{repeat 99999999 "abc"}}"#, "too long"),
];

#[test]
fn every_function_renders_what_go_renders() {
    for (source, expected) in RENDERED {
        match render(source) {
            Ok(rendered) => assert_eq!(rendered, *expected, "{source}"),
            Err(error) => panic!("{source}: {error:#}"),
        }
    }
}

#[test]
fn what_go_refuses_is_refused() {
    for (source, reason) in REFUSED {
        match render(source) {
            Ok(rendered) => panic!("{source} renders {rendered:?}"),
            Err(error) => assert!(format!("{error:#}").contains(reason), "{source}: {error:#}"),
        }
    }
}

#[test]
fn no_function_is_without_a_case() {
    let cases: Vec<&str> = RENDERED.iter().chain(REFUSED).map(|(source, _)| *source).collect();
    let is_used =
        |name: &str| cases.iter().any(|source| source.split(|c: char| !c.is_alphanumeric()).any(|word| word == name));
    let missing: Vec<_> =
        functions::names().into_iter().filter(|name| !matches!(*name, "include" | "call") && !is_used(name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_function_of_confd_of_its_store_of_go_and_of_the_fork_is_there() {
    let all = "and call eq ge gt html index js le len lt ne not or print printf println slice urlquery \
        exists get gets getv getvs ls lsdir \
        base split json jsonArray dir map getenv join datetime toUpper toLower contains replace trimSuffix lookupIP \
        lookupIPV4 lookupIPV6 lookupSRV fileExists base64Encode base64Decode parseBool reverse sortByLength sortKVByLength \
        add sub div mod mul seq atoi \
        hostname lookupIfaceIPV4 lookupIfaceIPV6 include default ternary coalesce empty toJson fromJson toPrettyJson indent \
        nindent quote squote regexMatch regexFind regexReplaceAll trimPrefix repeat nospace snakecase camelcase kebabcase \
        dict list hasKey keys values append pluck sha256sum";
    let mut all: Vec<&str> = all.split_whitespace().collect();
    all.sort_unstable();
    assert_eq!(functions::names(), all);
}

#[test]
fn templates_include_each_other_but_not_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("outer", r#"<{{include "inner" "a"}}{{include "inner"}}>"#);
    write("inner", r#"{{.}}:{{getv "/top"}}"#);
    assert_eq!(load(folder.path(), "outer").unwrap().render(&store()).unwrap(), "<a:x<no value>:x>");
    write("loop", r#"{{include "loop"}}"#);
    assert!(format!("{:#}", load(folder.path(), "loop").unwrap_err()).contains("includes itself"));
    write("hidden", r#"{{include (print "hid" "den")}}"#);
    let error = load(folder.path(), "hidden").unwrap().render(&store()).unwrap_err();
    assert!(format!("{error:#}").contains("includes itself"), "{error:#}");
    for outside in ["../x", "/etc/passwd", "a/../../x"] {
        write("outside", &format!("{{{{include {outside:?}}}}}"));
        assert!(format!("{:#}", load(folder.path(), "outside").unwrap_err()).contains("outside"), "{outside}");
    }
    write("bad", r#"{{include "broken"}}"#);
    write("broken", "{{nosuchfunction}}");
    assert!(load(folder.path(), "bad").is_err());
}

#[test]
fn a_command_may_name_its_files_and_nothing_else() {
    let values = [("src", "/etc/.x123"), ("dest", "/etc/x")];
    assert_eq!(expand_command("check -f {{ .src }} {{.dest}}", &values).unwrap(), "check -f /etc/.x123 /etc/x");
    assert_eq!(expand_command("plain", &values).unwrap(), "plain");
    assert!(expand_command("docker ps --format {{.Names}}", &values).is_err());
}
