//! Many pods at once of an image that nobody had before.

use hoist_testkit::cri::Pod;

use super::Kubelet;
use crate::node::Published;

const PODS: usize = 50;
/// Each with so many containers.
const CONTAINERS: usize = 4;

/// All run, on one mount, and share what is fetched.
pub fn fetches_once(kubelet: &Kubelet<'_>, image: &Published) {
    image.proxy.reset();
    let cri = kubelet.cri();
    let start = |pod: usize| {
        cri.pull(&image.name)?;
        let sandbox = cri.run_pod(&format!("pod-{pod}"))?;
        let run = |i| cri.start(&sandbox, &format!("{pod}-{i}"), &image.name, &["sleep", "1000000"]);
        let containers = (0..CONTAINERS).map(run).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, anyhow::Error>((sandbox, containers))
    };
    let pods: Vec<(Pod, Vec<String>)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..PODS).map(|pod| scope.spawn(move || start(pod))).collect();
        all.into_iter()
            .map(|pod| pod.join().unwrap().unwrap_or_else(|e| panic!("{e}\n{}", kubelet.said())))
            .collect()
    });
    assert_eq!(kubelet.mounted(), (1, 1));
    for (_, containers) in [&pods[0], &pods[PODS - 1]] {
        assert_eq!(kubelet.says(&containers[CONTAINERS - 1], &["id", "-u"]), "0\n");
    }
    let asked = of_layers(image);
    assert!((1..PODS).contains(&asked), "{asked} requests: {:?}", image.proxy.log());
}

/// Requests for layers: all pods together need fewer than they are.
fn of_layers(image: &Published) -> usize {
    let layers = image.layers();
    let log = image.proxy.log();
    log.iter().filter(|asked| layers.iter().any(|layer| asked.path.contains(layer))).count()
}
